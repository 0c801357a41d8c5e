"""When two rows count as the same: keys of their texts, so that duplicates are found by hash sets.

Decides what is compared (normalised word characters, the first 60 of them, and for long texts the share of
sampled shingles) and never compares all pairs. Which rows go when two are the same is for ``mp2.data.leaks``.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mp2.tasks.render import MRCExample

Hashes = NDArray[np.uint64]
_SEPARATOR = "\0"
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True, slots=True)
class DuplicateRules:
    """What counts as the same text.

    Attributes:
        version: Raised when the meaning of a rule changes.
        key: Two texts are the same if their first ``key`` word characters are.
        single: One sentence of a pair counts by itself from this many word characters on: shorter ones,
            such as common questions, recur by chance and say nothing about the pair's label.
        long: Texts of at least this many word characters are also compared by shingles.
        shingle: Characters of a shingle.
        sample: One shingle in so many is kept, chosen by its hash, so by its words and not its place.
        share: A text is a near duplicate if this share of its kept shingles is known.
        least: ... and at least so many are.
    """

    version: int = 1
    key: int = 60
    single: int = 20
    long: int = 60
    shingle: int = 16
    sample: int = 8
    share: float = 0.5
    least: int = 4

    def as_dict(self) -> dict[str, Any]:
        """The rules as plain values, for cache keys and reports."""
        return asdict(self)


RULES = DuplicateRules()


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Keys of n rows; ``*_row`` arrays say to which row each entry of a flat array belongs.

    Attributes:
        whole: ``(n,)`` everything a row says, answer included, untouched: two rows are copies.
        identity: ``(n,)`` its texts, whatever their order: two rows ask about the same thing.
        several: ``(n,)`` whether the row has several texts (a pair).
        text, text_row: ``identity``, and for rows with several texts each long one by itself.
        shingle, shingle_row: Sampled shingles of the long texts.
    """

    whole: Hashes
    identity: Hashes
    several: NDArray[np.bool_]
    text: Hashes
    text_row: NDArray[np.int64]
    shingle: Hashes
    shingle_row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.whole)


def row_keys(examples: Sequence[MRCExample]) -> RowKeys:
    """Keys of rendered rows; a row's texts are its segments that carry content (``cut``, ``context``)."""
    texts: list[str] = []
    owner: list[int] = []
    for row, example in enumerate(examples):
        found = [s.text for s in example.segments if s.role in ("cut", "context")]
        found = found or [s.text for s in example.segments if s.role == "field"]
        texts += found
        owner += [row] * len(found)
    codes = word_characters(texts)
    keys = [_key(code, text, RULES.key) for code, text in zip(codes, texts, strict=True)]
    parts: list[list[bytes]] = [[] for _ in examples]
    for row, key in zip(owner, keys, strict=True):
        parts[row].append(key)
    identity = [row[0] if len(row) == 1 else _digest(b"".join(sorted(row))) for row in parts]
    alone = [
        index for index, row in enumerate(owner) if len(parts[row]) > 1 and len(codes[index]) >= RULES.single
    ]
    rows = np.arange(len(examples))
    owners = np.array(owner, dtype=np.int64)
    shingle, text_of = _shingles(codes)
    return RowKeys(
        whole=_uint64([_whole(example) for example in examples]),
        identity=_uint64(identity),
        several=np.array([len(row) > 1 for row in parts], dtype=bool),
        text=_uint64([*identity, *(keys[index] for index in alone)]),
        text_row=np.concatenate([rows, owners[alone]]) if alone else rows,
        shingle=shingle,
        shingle_row=owners[text_of],
    )


def word_characters(texts: Sequence[str]) -> list[NDArray[np.uint32]]:
    """Word characters of texts as code points: NFKC, lower case, simplified characters, nothing else.

    All texts go through one vectorised pass.
    """
    if not texts:
        return []
    joined = _SEPARATOR.join(text.replace(_SEPARATOR, "") for text in texts)
    joined = unicodedata.normalize("NFKC", joined).lower()
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    word = _table()[codes]
    ends = np.flatnonzero(codes == 0)
    kept = np.flatnonzero(word)
    return np.split(word[kept], np.searchsorted(kept, ends))


@cache
def _table() -> NDArray[np.uint32]:
    """Code point -> its simplified form, or 0 for anything that is no letter and no digit."""
    import opencc

    table = np.array(
        [code if chr(code).isalnum() else 0 for code in range(sys.maxunicode + 1)], dtype=np.uint32
    )
    ideographs = [chr(code) for code in range(0x3400, 0xA000)]
    simplified = opencc.OpenCC("t2s").convert("\n".join(ideographs)).split("\n")
    table[0x3400:0xA000] = [
        ord(new if len(new) == 1 else old) for old, new in zip(ideographs, simplified, strict=True)
    ]
    return table


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _key(codes: NDArray[np.uint32], text: str, length: int) -> bytes:
    """Key of a text; one without any word character (emoji, dots) stands for itself."""
    return _digest(codes[:length].tobytes() or text.strip().encode("utf-8", "surrogatepass"))


def _whole(example: MRCExample) -> bytes:
    parts = [segment.text for segment in example.segments if segment.role not in ("literal", "no_answer")]
    parts += [*example.options, repr((example.answer, example.spans))]
    return _digest(_SEPARATOR.join(parts).encode("utf-8", "surrogatepass"))


def _uint64(digests: Sequence[bytes]) -> Hashes:
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _shingles(codes: Sequence[NDArray[np.uint32]]) -> tuple[Hashes, NDArray[np.int64]]:
    """Sampled shingle hashes of the long texts, and the index of the text of each."""
    chosen = [index for index, code in enumerate(codes) if len(code) >= RULES.long]
    if not chosen:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    flat = np.concatenate([codes[index] for index in chosen]).astype(np.uint64)
    owner = np.repeat(chosen, [len(codes[index]) for index in chosen])
    count = len(flat) - RULES.shingle + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(RULES.shingle):
        hashes = hashes * _BASE + flat[offset : offset + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    inside = owner[:count] == owner[RULES.shingle - 1 :]
    kept = inside & (hashes % np.uint64(RULES.sample) == 0)
    return hashes[kept], owner[:count][kept]


class HashSet:
    """A growing set of 64-bit hashes in 8 bytes each, for files with millions of rows."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Add hashes; says for each whether it is new (the first of equal ones is)."""
        fresh = np.zeros(len(hashes), dtype=bool)
        values, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in self._runs:
            known |= found_in(values, run)
        fresh[first[~known]] = True
        run = values[~known]
        # runs at least halve in size from one to the next, so there are few of them
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        if len(run):
            self._runs.append(run)
        return fresh


def found_in(values: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: NDArray[np.bool_] = known[place] == values
    return found
