from __future__ import annotations

import numpy as np
import pytest

from mp2.errors import ConfigError
from mp2.training.embeddings import ppmi_embeddings

GROUPS = 4
SIZE = 10


def company(seed: int = 0) -> np.ndarray:
    """Sentences of tokens of one group each; token ids 0..39, 40 and 41 never occur."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, GROUPS, size=(3000, 1))
    return (group * SIZE + rng.integers(0, SIZE, size=(3000, 8))).ravel().astype(np.uint16)


def test_tokens_of_the_same_company_are_near() -> None:
    vectors = ppmi_embeddings(company(), GROUPS * SIZE, 8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    same = np.equal.outer(np.arange(GROUPS * SIZE) // SIZE, np.arange(GROUPS * SIZE) // SIZE)
    assert cosines[same].min() > cosines[~same].max()


def test_scale_shape_and_unseen_tokens() -> None:
    vectors = ppmi_embeddings(company(), GROUPS * SIZE + 2, 16)
    assert vectors.shape == (42, 16) and vectors.dtype == np.float32
    assert vectors.std() == pytest.approx(0.02, rel=1e-4)
    norms = np.linalg.norm(vectors, axis=1)
    assert norms.min() > 0.2 * norms.mean()
    assert np.array_equal(vectors, ppmi_embeddings(company(), 42, 16))


def test_counts_weigh_by_distance_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from mp2.training import embeddings

    tokens = company()[:501]
    whole = embeddings._cooccurrence(tokens, 40, 3, 40)
    expected = np.zeros((40, 40))
    order = np.argsort(-np.bincount(tokens, minlength=40), kind="stable")
    column = np.argsort(order)
    for i, word in enumerate(tokens):
        for j in range(max(0, i - 3), min(len(tokens), i + 4)):
            if i != j:
                expected[word, column[tokens[j]]] += 1 / abs(i - j)
    assert np.allclose(whole, expected, rtol=1e-4)
    monkeypatch.setattr(embeddings, "_CHUNK", 64)
    assert np.allclose(embeddings._cooccurrence(tokens, 40, 3, 40), whole, rtol=1e-5)


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="dim: expected 1 to 40"):
        ppmi_embeddings(company(), 40, 41)
