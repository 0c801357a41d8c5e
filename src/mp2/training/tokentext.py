"""A corpus made ready for objectives: places to read from, words worth asking for, templates as tokens.

Decides which tokens count as words and which words are alike in frequency. Draws only from the generator it
is given, so that a row is a function of the generator alone. Lays out no rows (``mp2.training.choices``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mp2.errors import DataError
from mp2.training.corpus import Corpus

Tokens = list[int]
Array = NDArray[Any]
_COMMON = 2e-3  # a token more frequent than this says nothing about its text
_CLUMPED = 0.8  # a topical word is in at most this share of the blocks it would be in by chance
_FLATTENED = 0.7  # exponent on the sources' shares: small ones are drawn more often than in proportion
_BLOCK, _BLOCKS = 256, 16_384


class TokenText:
    """Tokens of a corpus with sentence and document bounds and word statistics.

    Args:
        corpus: The token files.
        tokenizer: The tokenizer that made them.

    Attributes:
        tokens: All tokens, shape ``(tokens,)``.
        sentences: First token of each sentence, and the end, shape ``(sentences + 1,)``.
        documents: First token of each document, and the end, shape ``(documents + 1,)``.
        probability: Share of each token in the corpus, shape ``(V,)``.
        letters: Whether a token is made of letters or Chinese characters, shape ``(V,)``.
        titles: Documents that look like the title of the next one.
        word: Whether a token is a word worth asking for, shape ``(V,)``.
        clumping: Share of the blocks of text a token occurs in, of those it would be in if spread by chance,
            shape ``(V,)``; what a text is about comes in clumps.
        topical: Whether it is a word that comes in clumps, shape ``(V,)``.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any) -> None:
        if corpus.meta["vocab_size"] != len(tokenizer):
            raise DataError(
                f"the corpus has a vocabulary of {corpus.meta['vocab_size']} tokens,"
                f" the tokenizer one of {len(tokenizer)}"
            )
        self.tokens: Array = np.array(corpus.tokens)
        self.sentences = np.append(corpus.sentences, len(self.tokens))
        self.documents = np.append(corpus.starts, len(self.tokens))
        self.cls, self.sep, self.mask = (
            int(getattr(tokenizer, f"{name}_token_id")) for name in ("cls", "sep", "mask")
        )
        self._tokenizer = tokenizer
        self._literals: dict[str, Tokens] = {}
        self._marks: dict[tuple[str, ...], NDArray[np.bool_]] = {}
        self._occurrences: dict[tuple[str, ...], list[NDArray[np.int64]]] = {}
        self._count_words()
        # the last files may hold no document: theirs begin at the end
        bounds = np.searchsorted(self.sentences, np.append(self.documents[corpus.sources], len(self.tokens)))
        self.titles = self._find_titles()
        self._first, self._size = bounds[:-1], np.diff(bounds)
        shares = self._size.astype(np.float64) ** _FLATTENED
        self._shares = np.cumsum(shares / shares.sum())

    def _count_words(self) -> None:
        pieces = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        counts = np.bincount(self.tokens, minlength=len(pieces))
        self.probability = counts / counts.sum()
        letters = np.array([piece.strip("#▁").isalpha() for piece in pieces])
        letters[list(self._tokenizer.all_special_ids)] = False
        long = letters & np.array([len(piece.strip("#▁")) > 1 for piece in pieces])
        # vocabularies of single characters have hardly any longer pieces; there a character is a word
        words = long if counts[long].sum() > 0.05 * counts.sum() else letters
        self.letters = letters
        self.word = words & (self.probability < _COMMON) & (counts > 1)
        self.clumping = self._measure_clumping(len(pieces))
        self.topical = self.word & (self.clumping < _CLUMPED)
        self._by_frequency = np.flatnonzero(self.word)[np.argsort(counts[self.word], kind="stable")]
        self._rank = np.full(len(pieces), -1)
        self._rank[self._by_frequency] = np.arange(len(self._by_frequency))

    def _measure_clumping(self, vocab_size: int) -> NDArray[np.float64]:
        size = min(_BLOCK, max(1, len(self.tokens) // 64))
        blocks = self.tokens[: len(self.tokens) // size * size].reshape(-1, size)
        blocks = blocks[:: -(-len(blocks) // _BLOCKS)].astype(np.int64)
        cells = np.unique(blocks + np.arange(len(blocks))[:, None] * vocab_size) % vocab_size
        found = np.bincount(cells, minlength=vocab_size)
        counts = np.bincount(blocks.ravel(), minlength=vocab_size)
        expected = len(blocks) * -np.expm1(-counts / len(blocks))
        return np.where(counts > 2, found / np.maximum(expected, 1e-9), 1.0)

    def _find_titles(self) -> NDArray[np.int64]:
        """Documents of one short sentence without a full stop that stand before a long one."""
        lengths = np.diff(self.documents)
        sentences = np.diff(np.searchsorted(self.sentences, self.documents))
        last = self.tokens[self.documents[1:] - 1]
        short = (lengths >= 3) & (lengths <= 24) & (sentences == 1) & self.letters[last]
        return np.flatnonzero(short[:-1] & (lengths[1:] >= 40))

    def literal(self, text: str) -> Tokens:
        """Tokens of a template's words; remembered."""
        if text not in self._literals:
            self._literals[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._literals[text]

    def draw_sentences(self, rng: np.random.Generator, count: int, room: int = 0) -> NDArray[np.int64]:
        """Indices of sentences: a source by its flattened share, then any of its sentences.

        Args:
            rng: Where chance comes from.
            count: Sentences to draw.
            room: Keep only sentences whose document goes on for at least this many tokens; may leave none.
        """
        source = np.minimum(np.searchsorted(self._shares, rng.random(count)), len(self._shares) - 1)
        drawn = self._first[source] + (rng.random(count) * self._size[source]).astype(np.int64)
        start = self.sentences[drawn]
        end = self.documents[np.searchsorted(self.documents, start, side="right")]
        return np.asarray(drawn[end - start >= room])

    def near_sentences(self, rng: np.random.Generator, index: int, count: int) -> list[int]:
        """Indices of sentences some way before or after a sentence, in other documents if those are short."""
        drawn = index + rng.integers(20, 2000, size=count) * rng.choice((-1, 1), size=count)
        return [int(i) for i in drawn % (len(self.sentences) - 1)]

    def sentence(self, index: int, limit: int) -> Tokens:
        """The first ``limit`` tokens of a sentence."""
        start, stop = self.sentences[index], self.sentences[index + 1]
        return list(self.tokens[start : min(stop, start + limit)].tolist())

    def marks(self, words: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which token ids are one of these words, shape ``(V,)``; remembered."""
        if words not in self._marks:
            marks = np.zeros(len(self.probability), dtype=bool)
            marks[[self.literal(word)[0] for word in words if len(self.literal(word)) == 1]] = True
            self._marks[words] = marks
        return self._marks[words]

    def occurrences(self, words: tuple[str, ...]) -> list[NDArray[np.int64]]:
        """Places in the corpus of each of those words that is one token and occurs; remembered."""
        if words not in self._occurrences:
            places = np.flatnonzero(self.marks(words)[self.tokens])
            order = np.argsort(self.tokens[places], kind="stable")
            _, bounds = np.unique(self.tokens[places][order], return_index=True)
            self._occurrences[words] = np.split(places[order], bounds[1:]) if len(places) else []
        return self._occurrences[words]

    def document_of(self, index: int) -> tuple[int, int]:
        """First and one past the last sentence of the document in which a sentence lies."""
        document = int(np.searchsorted(self.documents, self.sentences[index], side="right")) - 1
        first, stop = np.searchsorted(self.sentences, self.documents[document : document + 2])
        return int(first), int(stop)

    def passage(self, index: int, length: int) -> Array:
        """Up to ``length`` tokens from the start of a sentence to the end of its document."""
        start = int(self.sentences[index])
        end = int(self.documents[np.searchsorted(self.documents, start, side="right")])
        return self.tokens[start : min(start + max(length, 0), end)]

    def surroundings(self, index: int, reach: int = 300) -> Array:
        """The tokens around the start of a sentence, other documents of the corpus included."""
        start = int(self.sentences[index])
        return self.tokens[max(0, start - reach) : start + reach]

    def similar_words(self, rng: np.random.Generator, word: int, count: int) -> Tokens:
        """Distinct words of about the frequency of ``word``, without it; fewer in a tiny vocabulary."""
        rank, reach = int(self._rank[word]), max(8 * count, len(self._by_frequency) // 30)
        low = max(0, min(rank - reach, len(self._by_frequency) - 2 * reach))
        near = self._by_frequency[low : low + 2 * reach]
        drawn = near[rng.integers(0, len(near), size=3 * count)].tolist() if len(near) else []
        return [token for token in dict.fromkeys(drawn) if token != word][:count]

    def topical_words(self, rng: np.random.Generator, count: int, without: Sequence[int]) -> Tokens:
        """Distinct topical words of places all over the corpus, none of ``without``."""
        drawn = self.tokens[rng.integers(0, len(self.tokens), size=24 * count)]
        words = dict.fromkeys(drawn[self.topical[drawn]].tolist())
        banned = set(without)
        return [word for word in words if word not in banned][:count]
