"""Learns the pieces of a Unigram vocabulary from unbroken runs of one script, fast.

Decides which strings become pieces and their log probabilities: hard expectation-maximisation (the best
segmentation of the text under the current pieces, counted) with pruning by the likelihood a piece is worth.
Pieces are a few characters long, so the segmentation of millions of characters is a handful of array
operations and 20 million characters take about a minute. Knows nothing of tokenizers or files.

References:
    Kudo, *Subword regularization*, arXiv:1804.10959; Viterbi counts instead of expected ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_STREAM = 64
_IMPOSSIBLE = -1e9


def learn_pieces(text: str, size: int, *, longest: int = 4, seeds: int = 200_000) -> dict[str, float]:
    """Learn the most useful pieces of a text.

    Args:
        text: Runs of characters, separated by spaces; no piece contains a space.
        size: Pieces to keep; every single character of the text is kept, even if that makes more.
        longest: Longest piece, in characters.
        seeds: Candidates to start from.

    Returns:
        Piece -> natural log of its probability; most probable first.
    """
    alphabet = sorted(set(text) - {" "})
    if not alphabet:
        return {}
    codes = _codes(text, alphabet)
    pieces, ids, counts = _candidates(text, codes, alphabet, longest, seeds)
    streams = [_streams(column, length) for length, column in enumerate(ids, start=1)]
    alive = np.ones(len(pieces), dtype=bool)
    while True:
        for _ in range(2):
            scores = _log_probabilities(counts, alive, len(alphabet))
            counts = _count_best(streams, scores)
        if alive.sum() <= max(size, len(alphabet)):
            break
        target = max(size, len(alphabet), int(0.7 * alive.sum()))
        alive = _prune(pieces, scores, counts, alive, len(alphabet), target)
    scores = _log_probabilities(counts, alive, len(alphabet))
    order = np.argsort(-scores[:-1], kind="stable")
    return {pieces[index]: float(scores[index]) for index in order if alive[index]}


def _codes(text: str, alphabet: Sequence[str]) -> Ints:
    """Characters as 1..A, spaces as 0."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    table = np.zeros(0x110000, dtype=np.int64)
    table[[ord(character) for character in alphabet]] = np.arange(1, len(alphabet) + 1)
    return table[points]


def _candidates(
    text: str, codes: Ints, alphabet: Sequence[str], longest: int, seeds: int
) -> tuple[list[str], list[NDArray[np.int32]], NDArray[np.float64]]:
    """Single characters and the longer strings that cover most text.

    Returns:
        The pieces; for each length the id of the piece that starts at each position, or -1; their counts.
    """
    base = len(alphabet) + 1
    grams, known = codes, codes > 0
    found: list[tuple[Ints, Ints, Ints]] = []
    for length in range(2, longest + 1):
        # a string is its first part's number and its last character, so numbers stay small at any length
        grams, known = grams[:-1] * base + codes[length - 1 :], known[:-1] & (codes[length - 1 :] > 0)
        _, first, grams, counts = np.unique(
            np.where(known, grams, -1), return_index=True, return_inverse=True, return_counts=True
        )
        found.append((first, grams, np.where(known[first], counts, 0)))
    covered = np.concatenate([counts * length for length, (_, _, counts) in enumerate(found, start=2)])
    limit = max(2 * longest, np.sort(covered)[-seeds] if len(covered) > seeds else 0)
    pieces, columns = list(alphabet), [(codes - 1).astype(np.int32)]
    totals = [np.bincount(codes, minlength=base)[1:].astype(np.float64)]
    for length, (first, grams, counts) in enumerate(found, start=2):
        chosen = np.flatnonzero(counts * length >= limit)
        table = np.full(len(counts), -1, dtype=np.int32)
        table[chosen] = np.arange(len(pieces), len(pieces) + len(chosen))
        columns.append(table[grams])
        totals.append(counts[chosen].astype(np.float64))
        pieces += [text[start : start + length] for start in first[chosen].tolist()]
    return pieces, columns, np.concatenate(totals)


def _streams(column: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """Piece ids as ``(position, stream)``: the text in parallel streams; no piece leaves its stream."""
    count = -(-(len(column) + length - 1) // _STREAM)
    padded = np.full(count * _STREAM, -1, dtype=np.int32)
    padded[: len(column)] = column
    grid = np.ascontiguousarray(padded.reshape(count, _STREAM).T)
    if length > 1:
        grid[_STREAM - length + 1 :] = -1
    return grid


def _log_probabilities(
    counts: NDArray[np.float64], alive: NDArray[np.bool_], singles: int
) -> NDArray[np.float32]:
    """Log probabilities; single characters are always possible. One more entry: the impossible piece, -1."""
    counts = np.where(alive, counts, 0)
    counts[:singles] = np.maximum(counts[:singles], 0.5)
    scores = np.full(len(counts) + 1, _IMPOSSIBLE, dtype=np.float32)
    seen = np.flatnonzero(counts > 0)
    scores[seen] = np.log(counts[seen] / counts.sum())
    return scores


def _count_best(streams: Sequence[NDArray[np.int32]], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """How often each piece occurs in the most probable segmentation of the text."""
    width = streams[0].shape[1]
    best = np.full((_STREAM + 1, width), _IMPOSSIBLE * 100, dtype=np.float32)
    best[0] = 0.0
    choice = np.ones((_STREAM + 1, width), dtype=np.int8)
    for end in range(1, _STREAM + 1):
        # a space is no piece; it costs nothing
        first = streams[0][end - 1]
        best[end] = best[end - 1] + np.where(first < 0, 0.0, scores[first])
        for length in range(2, min(len(streams), end) + 1):
            reached = best[end - length] + scores[streams[length - 1][end - length]]
            better = reached > best[end]
            best[end][better] = reached[better]
            choice[end][better] = length
    counts = np.zeros(len(scores) - 1, dtype=np.float64)
    cut = np.zeros((_STREAM + 1, width), dtype=bool)
    cut[_STREAM] = True
    for end in range(_STREAM, 0, -1):
        for length in range(1, min(len(streams), end) + 1):
            here = cut[end] & (choice[end] == length)
            cut[end - length] |= here
            used = streams[length - 1][end - length][here]
            counts += np.bincount(used[used >= 0], minlength=len(counts))
    return counts


def _prune(
    pieces: Sequence[str],
    scores: NDArray[np.float32],
    counts: NDArray[np.float64],
    alive: NDArray[np.bool_],
    singles: int,
    target: int,
) -> NDArray[np.bool_]:
    """Keep single characters and the pieces whose loss would lower the text's likelihood most."""
    known = {pieces[index]: float(scores[index]) for index in np.flatnonzero(alive & (counts > 0)).tolist()}
    known |= {pieces[index]: float(scores[index]) for index in range(singles)}
    worth = np.full(len(pieces), -math.inf)
    worth[:singles] = math.inf
    for index in np.flatnonzero(alive & (counts > 0)).tolist():
        if index >= singles:
            worth[index] = counts[index] * (scores[index] - best_split(pieces[index], known))
    kept = np.zeros(len(pieces), dtype=bool)
    kept[np.argsort(-worth, kind="stable")[:target]] = True
    return kept & (worth > -math.inf)


def best_split(piece: str, known: dict[str, float]) -> float:
    """Log probability of the best way to write ``piece`` with at least two known pieces."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            if end - start < len(piece):
                score = known.get(piece[start:end])
                if score is not None and best[start] + score > best[end]:
                    best[end] = best[start] + score
    return best[-1]
