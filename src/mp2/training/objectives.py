"""What an encoder is trained on from raw text: a table of objectives, and their mixture.

Every objective makes rows from token files alone. Masked language modelling gives pairs of arrays; all others
give rows in the reading-comprehension form, laid out like real tasks. Batch ``i`` of a mixture is a function
of its seed and ``i``: a run resumes exactly from a number, and any process can make any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mp2.data.encode import Window
from mp2.errors import ConfigError, DataError, nearest
from mp2.training.choices import cloze, keyword, next_sentence, pair, ppt, ppt_letters, title
from mp2.training.corpus import Corpus
from mp2.training.polarity import polarity
from mp2.training.recurrence import recurrence
from mp2.training.tokentext import TokenText

MaskedRow = tuple[NDArray[np.int64], NDArray[np.int64]]
Row = Window | MaskedRow
Maker = Callable[[TokenText, np.random.Generator, int, int], Window | None]
MAKERS: dict[str, Maker] = {
    "cloze": cloze,
    "keyword": keyword,
    "next": next_sentence,
    "pair": pair,
    "polarity": polarity,
    "ppt": ppt,
    "ppt-letters": ppt_letters,
    "recur": recurrence,
    "title": title,
}
OBJECTIVES = ("mlm", *MAKERS)
_SHORTEST = 48  # rows of fewer tokens have no room for a passage and options
_SHARE, _SPAN_STOP, _LONGEST_SPAN = 0.15, 0.4, 6


class MaskedTokens:
    """Masked language modelling with whole spans masked.

    Rows are packed text between [CLS] and [SEP]. Of 15 % of the tokens, in spans of geometric length (mean
    2.3), four fifths become [MASK], a tenth random tokens, a tenth stay; a span shares one fate.

    Args:
        text: The corpus.
        length: Tokens of a row, T.

    References:
        Devlin et al., arXiv:1810.04805; Joshi et al., *SpanBERT*, arXiv:1907.10529.
    """

    def __init__(self, text: TokenText, length: int) -> None:
        if len(text.tokens) < length:
            raise DataError(f"expected a corpus of at least {length} tokens, got {len(text.tokens)}")
        self._text, self._length = text, length

    def __call__(self, rng: np.random.Generator, n_tokens: int) -> list[MaskedRow]:
        """Rows ``(ids, labels)`` of shape ``(T,)``; labels are -100 where nothing is asked."""
        text, rows, inner = self._text, max(1, n_tokens // self._length), self._length - 2
        starts = text.sentences[text.draw_sentences(rng, rows)]
        starts = np.minimum(starts, len(text.tokens) - inner)
        plain = text.tokens[starts[:, None] + np.arange(inner)].astype(np.int64)
        fate = _span_fates(rng, rows, inner)
        labels = np.where(fate > 0, plain, -100)
        changed = np.where(fate == 1, text.mask, plain)
        noise = rng.integers(0, len(text.probability), size=plain.shape)
        changed = np.where(fate == 2, noise, changed)
        ids = np.pad(changed, ((0, 0), (1, 1)), constant_values=text.cls)
        ids[:, -1] = text.sep
        return list(zip(ids, np.pad(labels, ((0, 0), (1, 1)), constant_values=-100), strict=True))


def _span_fates(rng: np.random.Generator, rows: int, length: int) -> NDArray[np.int64]:
    """What happens to each token: 0 nothing, 1 masked, 2 random, 3 kept but asked for."""
    lengths = np.arange(1, _LONGEST_SPAN + 1)
    chances = (1 - _SPAN_STOP) ** (lengths - 1) * _SPAN_STOP
    chances /= chances.sum()
    # spans may overlap: -log(1 - share) of the length covers the share on average
    count = max(1, round(-np.log(1 - _SHARE) * length / float(lengths @ chances)))
    starts = rng.integers(0, length, size=(rows, count))
    sizes = rng.choice(lengths, size=(rows, count), p=chances)
    fates = rng.choice([1, 2, 3], size=(rows, count), p=[0.8, 0.1, 0.1])
    out = np.zeros((rows, length + _LONGEST_SPAN), dtype=np.int64)
    row = np.broadcast_to(np.arange(rows)[:, None], starts.shape)
    for step in range(_LONGEST_SPAN):
        inside = sizes > step
        out[row[inside], starts[inside] + step] = fates[inside]
    return out[:, :length]


class MRCRows:
    """Rows of one kind in the reading-comprehension form, of similar length within a call.

    Args:
        text: The corpus.
        make: Makes one row at a place.
        max_length: Longest row, in tokens.
        name: The objective's name, for error messages.
    """

    def __init__(self, text: TokenText, make: Maker, max_length: int, name: str) -> None:
        self._text, self._make, self._max_length, self._name = text, make, max_length, name

    def __call__(self, rng: np.random.Generator, n_tokens: int) -> list[Window]:
        """Rows whose number times the longest is at most ``n_tokens`` (at least one row).

        Raises:
            DataError: The corpus has no place for this objective.
        """
        length = int(rng.integers(min(_SHORTEST, self._max_length), self._max_length + 1))
        rows: list[Window] = []
        longest = 0
        for row in self._endless(rng, length):
            longest = max(longest, len(row.ids))
            if rows and (len(rows) + 1) * longest > n_tokens:
                break
            rows.append(row)
        return rows

    def _endless(self, rng: np.random.Generator, length: int) -> Iterator[Window]:
        fruitless = 0
        # documents that fill about half a row; in a corpus of short ones, any
        room = length // 3
        while fruitless < 200:
            places = self._text.draw_sentences(rng, 256, room)
            if len(places) < 8:
                room //= 2
            for place in places.tolist():
                row = self._make(self._text, rng, place, length)
                fruitless += 1
                if row is not None and len(row.ids) <= length:
                    fruitless = 0
                    yield row
            fruitless += 1
        raise DataError(f"objective {self._name!r}: found no row of {length} tokens in the corpus")


def check_mixture(weights: Mapping[str, float], tokens: int, max_length: int) -> None:
    """Refuse what no :class:`Mixture` can be made of, with its arguments, before any text is read.

    Raises:
        ConfigError: An unknown objective, no positive weight, or a size that leaves no room.
    """
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise ConfigError(f"mixture: unknown objective {name!r}; {nearest(name, OBJECTIVES)}")
        if not 0 <= weight < math.inf:
            raise ConfigError(f"mixture: expected a weight of at least 0 for {name!r}, got {weight}")
    if not sum(weights.values()) > 0:
        raise ConfigError(f"mixture: expected a positive weight; valid: {', '.join(OBJECTIVES)}")
    if not _SHORTEST <= max_length <= tokens:
        raise ConfigError(
            f"expected room for {_SHORTEST} tokens in a row (positions, less prompt slots) and for a row in a"
            f" batch: a row has room for {max_length} tokens, a batch for {tokens}"
        )


class Mixture:
    """Batches of several objectives, one objective per batch, exactly reproducible.

    Args:
        weights: Objective -> share of the batches; need not sum to 1.
        corpus: The token files, or a text made from them.
        tokenizer: The tokenizer that made them.
        tokens: Padded tokens of a batch.
        max_length: Longest row, in tokens.
        seed: Seed of everything.
        rank: This process.
        world: Processes in all; each takes its own batches of one stream.

    Raises:
        ConfigError: As of :func:`check_mixture`.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        corpus: Corpus | TokenText,
        tokenizer: Any,
        *,
        tokens: int = 4096,
        max_length: int = 128,
        seed: int = 42,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_mixture(weights, tokens, max_length)
        total = sum(weights.values())
        text = corpus if isinstance(corpus, TokenText) else TokenText(corpus, tokenizer)
        self._names = [name for name, weight in weights.items() if weight > 0]
        self._chances = np.array([weights[name] / total for name in self._names])
        self._objectives: dict[str, MaskedTokens | MRCRows] = {
            name: MaskedTokens(text, max_length)
            if name == "mlm"
            else MRCRows(text, MAKERS[name], max_length, name)
            for name in self._names
        }
        self._tokens, self._seed, self._step = tokens, seed, 0
        self._rank, self._world = rank, world

    def batch(self, step: int) -> tuple[str, list[Any]]:
        """The batch of a step: the objective's name and its rows."""
        rng = np.random.default_rng([self._seed, step])
        name = self._names[int(rng.choice(len(self._names), p=self._chances))]
        return name, self._objectives[name](rng, self._tokens)

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        _, rows = self.batch(self._step + self._rank)
        self._step += self._world
        return rows

    def state_dict(self) -> dict[str, int]:
        """Where the stream is: the seed and the number of batches taken."""
        return {"seed": self._seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a saved stream was."""
        self._seed, self._step = int(state["seed"]), int(state["step"])
