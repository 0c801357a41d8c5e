"""Token embeddings from co-occurrence: where an encoder's training starts.

Decides the statistics (positive pointwise mutual information in a window, contexts smoothed) and the scale.
Words that keep the same company start near each other, which saves a small encoder the first hours of its
training. Knows tokens as numbers only.

References:
    Levy and Goldberg, *Neural word embedding as implicit matrix factorization*, NeurIPS 2014;
    Levy, Goldberg and Dagan, TACL 2015 (smoothing 0.75, square root of the singular values);
    Halko, Martinsson and Tropp, arXiv:0909.4061 (randomised SVD).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mp2.errors import ConfigError

Floats = NDArray[np.float32]
_CHUNK = 1 << 22
_SMOOTHING = 0.75
_OVERSAMPLE = 32
_ROUNDS = 3


def ppmi_embeddings(
    tokens: NDArray[Any],
    vocab_size: int,
    dim: int,
    *,
    window: int = 4,
    contexts: int = 8192,
    std: float = 0.02,
    seed: int = 0,
) -> Floats:
    """Embed tokens by the company they keep.

    Args:
        tokens: Token ids in reading order, shape ``(tokens,)``; document boundaries are ignored.
        vocab_size: Size V of the vocabulary.
        dim: Size H of an embedding.
        window: Neighbours looked at on each side; one at distance d counts 1/d.
        contexts: Most frequent tokens that count as company; memory is about ``8 * V * contexts`` bytes.
        std: Standard deviation of all entries together.
        seed: Seed of the random projection and of the rows of tokens that never occur.

    Returns:
        Embeddings, shape ``(V, H)``, columns in descending order of the variance they hold.

    Raises:
        ConfigError: ``dim`` is larger than the number of contexts.
    """
    contexts = min(contexts, vocab_size)
    if not 0 < dim <= contexts:
        raise ConfigError(f"dim: expected 1 to {contexts} (contexts), got {dim}")
    generator = np.random.default_rng(seed)
    counts = _cooccurrence(tokens, vocab_size, window, contexts)
    left, values = _randomised_svd(_ppmi(counts), dim, generator)
    vectors = left * np.sqrt(values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = norms[norms > 0].mean() if (norms > 0).any() else 1.0
    # no row so long that it drowns the positions, none so short that it is drowned
    vectors *= np.clip(norms, mean / 2, mean * 2) / np.maximum(norms, 1e-12)
    unseen = norms[:, 0] < 1e-6 * mean
    vectors[unseen] = generator.standard_normal((int(unseen.sum()), dim)) * mean / np.sqrt(dim)
    return np.asarray(vectors * (std / vectors.std()), dtype=np.float32)


def _cooccurrence(tokens: NDArray[Any], vocab_size: int, window: int, contexts: int) -> Floats:
    """Weighted counts ``(V, contexts)`` of tokens near the most frequent tokens."""
    frequency = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _CHUNK):
        frequency += np.bincount(tokens[start : start + _CHUNK], minlength=vocab_size)
    column = np.full(vocab_size, -1, dtype=np.int64)
    column[np.argsort(-frequency, kind="stable")[:contexts]] = np.arange(contexts)
    counts = np.zeros(vocab_size * contexts, dtype=np.float32)
    for start in range(0, len(tokens), _CHUNK):
        chunk = np.asarray(tokens[start : start + _CHUNK + window], dtype=np.int64)
        company = column[chunk]
        for distance in range(1, window + 1):
            for word, near in (
                (chunk[:-distance], company[distance:]),
                (chunk[distance:], company[:-distance]),
            ):
                cells = (word * contexts + near)[:_CHUNK][near[:_CHUNK] >= 0]
                np.add.at(counts, cells, np.float32(1 / distance))
    return counts.reshape(vocab_size, contexts)


def _ppmi(counts: Floats) -> Floats:
    """Positive pointwise mutual information, in place; float32 throughout."""
    rows = counts.sum(axis=1, dtype=np.float64)
    smoothed = counts.sum(axis=0, dtype=np.float64) ** _SMOOTHING
    columns = smoothed / max(smoothed.sum(), 1e-12)
    scale = (1 / np.maximum(columns, 1e-12)).astype(np.float32)
    for start in range(0, len(counts), 1024):
        block = counts[start : start + 1024]
        block /= np.maximum(rows[start : start + 1024, None], 1e-12).astype(np.float32)
        block *= scale
        np.maximum(block, 1.0, out=block)
        np.log(block, out=block)
    return counts


def _randomised_svd(
    matrix: Floats, rank: int, generator: np.random.Generator
) -> tuple[Floats, NDArray[np.float32]]:
    """Left singular vectors ``(V, rank)`` and singular values ``(rank,)`` of a ``(V, C)`` matrix."""
    width = min(rank + _OVERSAMPLE, min(matrix.shape))
    probe = generator.standard_normal((matrix.shape[1], width), dtype=np.float32)
    basis, _ = np.linalg.qr(matrix @ probe)
    for _ in range(_ROUNDS):
        turned, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ turned)
    inner, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ inner)[:, :rank], values[:rank]
