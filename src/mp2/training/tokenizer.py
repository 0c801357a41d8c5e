"""The vocabulary of a new encoder: a Unigram model over Chinese words, trained from raw text.

Decides how text becomes pieces: compatibility forms are folded and letters lower-cased, every digit and every
punctuation mark or symbol stands alone, Chinese runs are never mixed with other scripts, and white space only
separates. Pieces carry no marker of their position, so a label word has one id wherever it stands. Does not
tokenise corpora (``mp2.training.corpus``) and does not lay out inputs (``mp2.data.encode``).

Normalisation decomposes (NFKD) and does not compose again: a composed letter would get the offsets of its
first half only, and an answer cut from the user's text would lose its accent.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mp2.errors import ConfigError
from mp2.training.unigram import best_split, learn_pieces

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODEL_LENGTH = 512
_HAN = "々〇㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff"
_ALONE = r"[\p{P}\p{S}\p{N}]"
_INVISIBLE = r"[\p{Cc}\p{Cf}\x{FE00}-\x{FE0F}]"
_LONGEST_LATIN = 12
_PREFERENCE = 0.5  # by how much (in nats) a requested word beats its best split
Pieces = dict[str, float]


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 20_000,
    words: Sequence[str] = (),
    latin: int = 2_000,
    characters: int = 7_500,
    longest: int = 4,
    sample: int = 20_000_000,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary and return a fast tokenizer that any BERT-form encoder can use.

    Chinese pieces and all others are learned apart; they never meet in one piece, so their scores need not
    be comparable.

    Args:
        texts: Documents; read once.
        vocab_size: Size of the vocabulary, the five special tokens included; fewer if the text is small.
        words: Words (label words, for example) that must be single pieces when they stand alone. A word that
            normalisation or a script change splits becomes one piece per part.
        latin: Pieces of the vocabulary for everything that is not Chinese.
        characters: The most frequent single characters, all kept as pieces; rarer ones are unknown.
        longest: Longest Chinese piece, in characters; ``words`` may be longer.
        sample: Characters of the text to learn from; a fixed sample is drawn when there are more.

    Returns:
        The tokenizer; ``save_pretrained`` writes a folder for ``AutoTokenizer.from_pretrained``.

    Raises:
        ConfigError: The vocabulary is too small for the characters, or there is no text.

    References:
        Kudo, *Subword regularization*, arXiv:1804.10959 (the Unigram model).
    """
    least = characters + latin + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size: expected at least {least} (characters, latin, special), got {vocab_size}"
        )
    lines = [_normalise(text) for text in sample_texts(texts, sample)]
    han, other = _split_scripts(lines, characters)
    if not han and not other:
        raise ConfigError("texts: expected text to learn a vocabulary from, got none")
    room = vocab_size - len(SPECIAL_TOKENS)
    others = learn_pieces(other, latin, longest=_LONGEST_LATIN)
    pieces = {**learn_pieces(han, room - len(others), longest=longest), **others}
    splitter = _tokenizer({})
    wanted = dict.fromkeys(part for word in words for part in _parts(splitter, word))
    return _wrap(_tokenizer(_with_words(pieces, list(wanted), room)))


def sample_texts(texts: Iterable[str], characters: int) -> list[str]:
    """Draw texts of about ``characters`` characters in all, the same ones whenever the texts are the same.

    A text is kept by the hash of what it says; an eighth of the hashes is dropped whenever too much was kept.
    """
    kept: list[tuple[int, str]] = []
    limit, size = 1 << 32, 0
    for text in texts:
        mark = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        if mark < limit:
            kept.append((mark, text))
            size += len(text)
        while size > characters and len(kept) > 1:
            limit = limit * 7 // 8
            kept = [item for item in kept if item[0] < limit]
            size = sum(len(item[1]) for item in kept)
    return [text for _, text in kept]


def _normalise(text: str) -> str:
    """The tokenizer's own normalisation, close enough for counting."""
    return unicodedata.normalize("NFKD", text).lower()


def _split_scripts(lines: Sequence[str], characters: int) -> tuple[str, str]:
    """The Chinese runs and all other runs of the text, separated by spaces; rare characters separate too."""
    counts: Counter[str] = Counter()
    for start in range(0, len(lines), 1000):
        counts.update("".join(lines[start : start + 1000]))
    rare = {ord(character): " " for character, _ in counts.most_common()[characters:]}
    text = " ".join(lines).translate(rare)
    return re.sub(f"[^{_HAN}]+", " ", text), re.sub(
        r"([^\w\s]|[\d_])", r" \1 ", re.sub(f"[{_HAN}]+", " ", text)
    )


def _tokenizer(pieces: Pieces) -> Tokenizer:
    """A tokenizer of these pieces, without post-processing."""
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + list(pieces.items())
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("[UNK]"), byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(_INVISIBLE), " "), normalizers.NFKD(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(_ALONE), "isolated"),
            pre_tokenizers.Split(Regex(f"[{_HAN}]+"), "isolated"),
        ]
    )
    return tokenizer


def _parts(tokenizer: Tokenizer, word: str) -> Iterator[str]:
    """What the pre-tokeniser leaves of a word: itself, unless it mixes scripts or holds punctuation."""
    normal = tokenizer.normalizer.normalize_str(word)
    for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
        yield part


def _with_words(pieces: Pieces, words: Sequence[str], size: int) -> Pieces:
    """Make each word the best way to write itself, in place of the least probable longer pieces."""
    known = dict(pieces)
    floor = min(known.values(), default=0.0)
    for word in words:
        for character in word:
            known.setdefault(character, floor)
        if len(word) > 1:
            known[word] = max(known.get(word, -math.inf), best_split(word, known) + _PREFERENCE)
    wanted = set(words)
    spare = [piece for piece in known if len(piece) > 1 and piece not in wanted]
    for piece in sorted(spare, key=known.__getitem__)[: max(0, len(known) - size)]:
        del known[piece]
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MODEL_LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    )
