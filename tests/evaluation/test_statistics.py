"""Statistics against closed forms and known cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from mp2.errors import ConfigError
from mp2.evaluation.statistics import (
    Comparison,
    Matrix,
    compare_all,
    holm,
    permutation_p,
    replicates,
    summarise,
    summarise_tasks,
    win_matrix,
)


def _coins(share: float, seeds: int = 5, rows: int = 300, seed: int = 0) -> Matrix:
    return (np.random.default_rng(seed).random((seeds, rows)) < share).astype(float)


def _pair(one: Matrix, two: Matrix, resamples: int = 2000) -> Comparison:
    return compare_all({"a": one, "b": two}, resamples=resamples)[0]


def test_mean_and_sample_std() -> None:
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = summarise(scores)
    assert found.mean == 0.5 and found.seeds == 3
    assert found.std == pytest.approx(np.std([0.25, 0.5, 0.75], ddof=1))
    assert found.low < 0.5 < found.high


def test_one_seed_has_no_std_but_an_interval() -> None:
    found = summarise(_coins(0.7, seeds=1))
    assert found.std == 0 and found.low < found.mean < found.high


def test_the_interval_of_independent_rows_is_the_binomial_one() -> None:
    scores = _coins(0.7, seeds=1, rows=1000)
    found = summarise(scores, resamples=4000)
    exact = 1.96 * np.sqrt(scores.mean() * (1 - scores.mean()) / 1000)
    assert (found.high - found.low) / 2 == pytest.approx(exact, rel=0.08)


def test_the_interval_grows_with_the_spread_of_seeds() -> None:
    rng = np.random.default_rng(1)
    spread = np.stack([(rng.random(400) < share) for share in (0.4, 0.6, 0.8)]).astype(float)
    narrow, wide = summarise(_coins(0.6, seeds=3, rows=400)), summarise(spread)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_coverage_of_the_interval_over_seeds_and_rows() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(60):
        difficulty, luck = rng.normal(0, 0.1, 150), rng.normal(0, 0.03, 8)
        scores = 0.6 + difficulty + luck[:, None] + rng.normal(0, 0.1, (8, 150))
        found = summarise(scores, resamples=400, seed=trial)
        hits += found.low <= 0.6 <= found.high
    assert hits >= 50  # 95 % asked; few seeds make it a little too narrow


def test_replicates_depend_on_the_seed_alone() -> None:
    scores = _coins(0.5)
    first = replicates(scores, 50, seed=9)
    assert (first == replicates(np.stack([scores, 1 - scores]), 50, seed=9)[0]).all()
    assert (first != replicates(scores, 50, seed=10)).any()


def test_the_average_over_tasks() -> None:
    tasks = [_coins(0.9, seed=1), _coins(0.5, seed=2)]
    found = summarise_tasks(tasks)
    assert found.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2)
    single = [summarise(task) for task in tasks]
    assert found.high - found.low < max(s.high - s.low for s in single)


def test_equal_methods_do_not_differ_and_different_ones_do() -> None:
    one = _coins(0.6, seed=1)
    assert _pair(one, one).p == 1 and _pair(one, one).p_rows == 1
    clear = _pair(_coins(0.8, seed=1), _coins(0.5, seed=2))
    assert clear.difference > 0.2 and clear.low > 0 and clear.p < 0.01 and clear.p_rows < 0.01


def test_the_permutation_test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    gap = rng.normal(0.08, 0.5, (1, 60))
    ours = permutation_p(gap, resamples=8000)[0]
    theirs = permutation_test(
        (gap[0], np.zeros(60)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=8000,
        rng=rng,
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)


def test_p_values_under_the_null_are_not_too_small() -> None:
    rng = np.random.default_rng(6)
    draws = [[(rng.random((5, 80)) < 0.6).astype(float) for _ in "ab"] for _ in range(100)]
    small = [_pair(one, two, resamples=300).p < 0.05 for one, two in draws]
    assert sum(small) <= 14


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    values = [0.001, 0.02, 0.03, 0.2]
    assert all(h >= b for h, b in zip(holm(values), false_discovery_control(values), strict=True))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the same seeds and rows only, got a \(5, 10\), b \(5, 11\)"):
        _pair(_coins(0.5, rows=10), _coins(0.5, rows=11))


def test_wins_are_counted_after_correction() -> None:
    methods = {"good": _coins(0.85, seed=1), "bad": _coins(0.5, seed=2), "same": _coins(0.85, seed=1)}
    wins = win_matrix(list(methods), {"task": compare_all(methods), "again": compare_all(methods)})
    assert wins.tolist() == [[0, 2, 0], [0, 0, 0], [0, 2, 0]]
