"""Statistics against closed forms and known cases."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test, ttest_1samp

from mp2.errors import ConfigError
from mp2.evaluation.statistics import (
    Comparison,
    Matrix,
    compare_all,
    holm,
    permutation_p,
    replicates,
    spread,
    summarise,
    win_matrix,
)


def _coins(share: float, seeds: int = 5, rows: int = 300, seed: int = 0) -> Matrix:
    return (np.random.default_rng(seed).random((seeds, rows)) < share).astype(float)


def _pair(one: Matrix, two: Matrix) -> Comparison:
    return compare_all({"a": [(range(len(one)), one)], "b": [(range(len(two)), two)]})[0]


def _null(seeds: int, luck: float, tasks: int = 1, trials: int = 20) -> Matrix:
    """p-values of pairs out of twelve equal methods: luck of the draw, of the row, of the single answer."""
    rng = np.random.default_rng(6)
    values = []
    for _ in range(trials):
        methods = {}
        for name in "abcdefghijkl":
            draws = [rng.normal(0, luck, (seeds, 1)) for _ in range(tasks)]
            each = [one + rng.normal(0, 0.2, 100) + rng.normal(0, 0.5, (seeds, 100)) for one in draws]
            methods[name] = [(range(seeds), scores) for scores in each]
        values += [c.p for c in compare_all(methods)]
    return np.array(values)


def test_mean_and_sample_std() -> None:
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = summarise([scores])
    assert found.mean == 0.5 and found.seeds == 3
    assert found.std == pytest.approx(np.std([0.25, 0.5, 0.75], ddof=1))
    assert found.low < 0.5 < found.high


def test_one_seed_has_no_std_but_an_interval() -> None:
    found = summarise([_coins(0.7, seeds=1)])
    assert found.std is None and found.low < found.mean < found.high


def test_the_interval_of_independent_rows_is_the_binomial_one() -> None:
    scores = _coins(0.7, seeds=1, rows=1000)
    found = summarise([scores])
    exact = 1.96 * np.sqrt(scores.mean() * (1 - scores.mean()) / 1000)
    assert (found.high - found.low) / 2 == pytest.approx(exact, rel=0.08)


def test_the_interval_grows_with_the_spread_of_seeds() -> None:
    rng = np.random.default_rng(1)
    unlike = np.stack([(rng.random(400) < share) for share in (0.4, 0.6, 0.8)]).astype(float)
    narrow, wide = summarise([_coins(0.6, seeds=3, rows=400)]), summarise([unlike])
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_coverage_of_the_interval_over_seeds_and_rows() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        difficulty, luck = rng.normal(0, 0.1, 150), rng.normal(0, 0.03, 8)
        scores = 0.6 + difficulty + luck[:, None] + rng.normal(0, 0.1, (8, 150))
        found = summarise([scores])
        hits += found.low <= 0.6 <= found.high
    assert hits >= 50  # 95 % asked; few seeds make it a little too narrow


def test_replicates_depend_on_the_seed_alone() -> None:
    scores = _coins(0.5)
    first = replicates(scores, seed=9)
    assert (first == replicates(scores, seed=9)).all()
    assert (first != replicates(scores, seed=10)).any()


def test_a_replicate_is_the_mean_of_drawn_seeds_and_rows() -> None:
    scores = np.arange(6.0).reshape(2, 3) ** 2
    means = {
        round(float(scores[np.ix_(seeds, rows)].mean()), 9)
        for seeds in product(range(2), repeat=2)
        for rows in product(range(3), repeat=3)
    }
    assert set(replicates(scores, resamples=500).round(9)) == means  # all of them, and nothing else


def test_the_average_over_tasks() -> None:
    tasks = [_coins(0.9, seed=1), _coins(0.5, seed=2)]
    found = summarise(tasks)
    assert found.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2)
    single = [summarise([task]) for task in tasks]
    assert found.high - found.low < max(s.high - s.low for s in single)


def test_equal_methods_do_not_differ_and_different_ones_do() -> None:
    one = _coins(0.6, seed=1)
    assert _pair(one, one).p == 1 and _pair(one, one).p_rows == 1
    clear = _pair(_coins(0.8, seed=1), _coins(0.5, seed=2))
    assert clear.difference > 0.2 and clear.low > 0 and clear.p < 0.01 and clear.p_rows < 0.01


def test_the_spread_over_seeds_alone_is_the_t_test() -> None:
    by_seed = np.array([0.1, 0.3, 0.2, 0.0])
    gap = np.repeat(by_seed[:, None], 50, axis=1)  # rows do not differ
    variance, free = spread([gap])
    assert free == pytest.approx(3)
    theirs = ttest_1samp(by_seed, 0)
    found = _pair(gap, np.zeros_like(gap))
    assert variance == pytest.approx(by_seed.var(ddof=1) / 4) and found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_permutation_test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(5)
    gap = rng.normal(0.08, 0.5, (1, 60))
    ours = permutation_p([gap], resamples=8000)[0]
    theirs = permutation_test(
        (gap[0], np.zeros(60)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=8000,
        rng=rng,
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)
    assert permutation_p([gap, gap + 0.1])[0] < ours


@pytest.mark.parametrize(("seeds", "tasks"), [(5, 1), (3, 1), (2, 4)])
@pytest.mark.parametrize("luck", [0.0, 0.03, 0.2])
def test_p_values_under_the_null_are_not_too_small(seeds: int, tasks: int, luck: float) -> None:
    assert (_null(seeds, luck, tasks) < 0.05).mean() <= 0.07


def test_two_seeds_of_one_task_are_too_few_to_compare_but_not_two_of_several() -> None:
    assert len(_null(2, 0.03, trials=1)) == 0
    assert len(_null(2, 0.03, tasks=2, trials=1)) == 66
    assert len(_null(1, 0.03, tasks=4, trials=1)) == 0


def test_a_pair_that_is_not_compared_does_not_weaken_the_others() -> None:
    good, bad = _coins(0.66, seed=1), _coins(0.5, seed=2)
    pair = {"good": [(range(5), good)], "bad": [(range(5), bad)]}
    alone = compare_all(pair)
    more = compare_all({**pair, "once": [((3,), good[3:4])]})
    assert more == alone and alone[0].holm == alone[0].p


def test_methods_are_compared_on_the_seeds_that_both_have_in_any_order() -> None:
    one, two = _coins(0.8, seed=1), _coins(0.5, seed=2)
    found = compare_all({"a": [((1, 2, 3, 4, 5), one)], "b": [((9, 4, 3, 2), two[:4])]})[0]
    assert found.seeds == 3
    assert found.difference == pytest.approx((one[[1, 2, 3]] - two[[3, 2, 1]]).mean())


def test_an_average_can_tell_what_no_single_task_can() -> None:
    tasks = [(_coins(0.67, seed=i), _coins(0.6, seed=i + 50)) for i in range(6)]
    ours, theirs = ([(range(5), pair[side]) for pair in tasks] for side in (0, 1))
    singles = [compare_all({"a": [one], "b": [two]})[0] for one, two in zip(ours, theirs, strict=True)]
    together = compare_all({"a": ours, "b": theirs})[0]
    assert together.p < min(c.p for c in singles) and together.p_rows <= min(c.p_rows for c in singles)
    assert together.difference == pytest.approx(np.mean([c.difference for c in singles]))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    values = [0.001, 0.02, 0.03, 0.2]
    assert all(h >= b for h, b in zip(holm(values), false_discovery_control(values), strict=True))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the same rows only, got a \(5, 10\), b \(5, 11\)"):
        _pair(_coins(0.5, rows=10), _coins(0.5, rows=11))


def test_wins_are_counted_after_correction() -> None:
    scores = {"good": _coins(0.85, seed=1), "bad": _coins(0.5, seed=2), "same": _coins(0.85, seed=1)}
    found = compare_all({name: [(range(5), matrix)] for name, matrix in scores.items()})
    wins = win_matrix([*scores, "absent"], {"task": found, "again": found})
    assert wins.tolist() == [[-1, 2, 0, -1], [0, -1, 0, -1], [0, 2, -1, -1], [-1, -1, -1, -1]]
