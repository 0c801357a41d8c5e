from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np
import pytest

from mp2.data.sampling import SEEDS, MultiTaskSampler, few_shot, shots_per_label
from mp2.errors import CheckpointError, ConfigError, DataError


@pytest.mark.parametrize(
    ("n_labels", "rows"), [(0, 32), (2, 16), (3, 10), (4, 8), (5, 6), (6, 8), (10, 8), (15, 8), (119, 8)]
)
def test_shots_per_label_is_the_published_table(n_labels: int, rows: int) -> None:
    assert shots_per_label(n_labels) == rows


@pytest.mark.parametrize("seed", SEEDS)
def test_few_shot_is_balanced_disjoint_and_seeded(seed: int) -> None:
    labels = [index % 7 % 3 for index in range(500)]
    train, dev = few_shot(labels, seed=seed, n_labels=3)
    assert Counter(labels[i] for i in train) == Counter(labels[i] for i in dev) == {0: 10, 1: 10, 2: 10}
    assert not set(train) & set(dev)
    assert (train, dev) == few_shot(labels, seed=seed, n_labels=3)
    assert train != few_shot(labels, seed=seed + 1, n_labels=3)[0]


def test_few_shot_without_labels_takes_32_and_32_of_any_answer() -> None:
    train, dev = few_shot([None] * 64, seed=8, n_labels=0)
    assert len(train) == len(dev) == 32
    assert sorted(train + dev) == list(range(64))


def test_few_shot_keeps_documents_on_one_side() -> None:
    groups = [row // 9 for row in range(180)]
    for seed in SEEDS:
        train, dev = few_shot([None] * 180, seed=seed, n_labels=0, groups=groups)
        assert len(train) == len(dev) == 32
        assert not {groups[i] for i in train} & {groups[i] for i in dev}
    labels = [row % 2 for row in range(180)]
    train, dev = few_shot(labels, seed=8, n_labels=2, groups=groups)
    assert sum(labels[i] for i in train) == sum(labels[i] for i in dev) == 16
    assert not {groups[i] for i in train} & {groups[i] for i in dev}


def test_few_shot_works_with_exactly_enough_documents() -> None:
    groups = [row // 16 for row in range(64)]
    train, dev = few_shot([None] * 64, seed=3, n_labels=0, groups=groups)
    assert len(set(groups[i] for i in train)) == len(set(groups[i] for i in dev)) == 2


def test_few_shot_says_which_label_is_short() -> None:
    labels = [0] * 50 + [1] * 20 + [None] * 30
    with pytest.raises(DataError, match=r"label 1 \('正面'\) has 20 rows") as caught:
        few_shot(labels, seed=8, n_labels=2, names=["负面", "正面"])
    assert "32 are needed" in str(caught.value) and "label 0" not in str(caught.value)
    with pytest.raises(DataError, match="the pool has 63 rows"):
        few_shot([None] * 63, seed=8, n_labels=0)
    with pytest.raises(DataError, match="no text on both sides"):
        few_shot([None] * 100, seed=8, n_labels=0, groups=[0] * 100)
    with pytest.raises(ConfigError, match="shots"):
        few_shot([0, 1], seed=8, n_labels=2, shots=0)


def _lengths(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 200, size=size) for size in sizes]


def test_a_pass_is_a_permutation_with_its_tail() -> None:
    lengths = _lengths(1003, 7)
    sampler = MultiTaskSampler(lengths, rows=8, tokens=600, seed=1)
    seen: list[list[int]] = [[], []]
    while len(seen[0]) < 3 * 1003 or len(seen[1]) < 21:
        task, rows = next(sampler)
        seen[task] += rows
        assert 1 <= len(rows) <= 8
        assert len(rows) == 1 or len(rows) * lengths[task][rows].max() <= 600
    for task, size in enumerate((1003, 7)):
        passes = [seen[task][k * size : (k + 1) * size] for k in range(3)]
        assert all(sorted(rows) == list(range(size)) for rows in passes)
        assert size == 7 or passes[0] != passes[1]


def test_rows_of_a_batch_are_of_similar_length() -> None:
    lengths = _lengths(5000)
    sampler = MultiTaskSampler(lengths, rows=16, seed=1)
    real = padded = 0
    for _ in range(300):
        _, rows = next(sampler)
        real += int(lengths[0][rows].sum())
        padded += len(rows) * int(lengths[0][rows].max())
    assert real / padded > 0.95


def test_tasks_are_drawn_uniformly_whatever_their_size() -> None:
    sampler = MultiTaskSampler(_lengths(10, 1000, 20000, 50), rows=32, seed=42)
    drawn = Counter(next(sampler)[0] for _ in range(8000))
    assert all(abs(drawn[task] - 2000) < 5 * 39 for task in range(4))  # five standard deviations


@pytest.mark.parametrize("steps", [0, 1, 57, 4200])
def test_resume_is_exact(steps: int) -> None:
    lengths = _lengths(300, 41, 5)
    one = MultiTaskSampler(lengths, rows=8, tokens=900, seed=7)
    for _ in range(steps):
        next(one)
    state = json.loads(json.dumps(one.state_dict()))
    rest = [next(one) for _ in range(200)]
    other = MultiTaskSampler(lengths, rows=8, tokens=900, seed=7)
    other.load_state_dict(state)
    assert [next(other) for _ in range(200)] == rest


def test_ranks_share_one_plan_and_no_batch() -> None:
    lengths = _lengths(300, 41, 5)
    alone = MultiTaskSampler(lengths, rows=8, seed=7)
    ranks = [MultiTaskSampler(lengths, rows=8, seed=7, rank=rank, world=3) for rank in range(3)]
    together = [next(ranks[step % 3]) for step in range(300)]
    assert together == [next(alone) for _ in range(300)]
    states = [rank.state_dict() for rank in ranks]
    assert states[0] == states[1] == states[2] == alone.state_dict()
    alone.load_state_dict(states[1])  # on fewer processes than before
    assert next(alone) == next(ranks[0])


def test_a_state_of_other_data_is_refused() -> None:
    state = MultiTaskSampler(_lengths(300, 41), rows=8, seed=7).state_dict()
    with pytest.raises(CheckpointError, match=r"sizes was .*41.* is now .*42"):
        MultiTaskSampler(_lengths(300, 42), rows=8, seed=7).load_state_dict(state)
    with pytest.raises(CheckpointError, match="seed was 7, is now 8"):
        MultiTaskSampler(_lengths(300, 41), rows=8, seed=8).load_state_dict(state)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"empty: \[1\]"):
        MultiTaskSampler([np.ones(3), np.ones(0)], rows=8)
    with pytest.raises(ConfigError, match="rank"):
        MultiTaskSampler([np.ones(3)], rows=8, rank=2, world=2)


def test_a_pass_over_millions_is_planned_quickly() -> None:
    sampler = MultiTaskSampler(
        [np.random.default_rng(0).integers(5, 200, size=2_000_000)], rows=32, tokens=4096
    )
    begin = time.perf_counter()
    next(sampler)
    assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(("exponent", "share"), [(0.0, 1 / 2), (0.5, 2 / 3), (1.0, 4 / 5)])
def test_tasks_are_drawn_by_their_size_to_a_power(exponent: float, share: float) -> None:
    lengths = [np.full(400, 8), np.full(100, 8)]
    sampler = MultiTaskSampler(lengths, rows=4, size_exponent=exponent, seed=3)
    drawn = [next(sampler)[0] for _ in range(4000)]
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.03)
