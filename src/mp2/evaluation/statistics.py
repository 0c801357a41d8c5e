"""What five seeds and a few hundred test rows can tell: intervals, paired tests, corrections, wins.

Scores of one method on one task are a matrix ``(S, R)``: seeds by test rows. Both are samples (of few-shot
draws, and of texts), so intervals resample both; methods are compared on the same seeds and the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mp2.errors import ConfigError

Matrix = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over seeds and rows with its spread.

    Attributes:
        mean: Mean score.
        std: Sample standard deviation of the seeds' means (S - 1); 0 with one seed.
        low, high: Bootstrap interval of the mean over seeds and rows.
        seeds: S.
    """

    mean: float
    std: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods on the same seeds and rows.

    Attributes:
        first, second: The methods.
        difference: Mean of the first minus mean of the second.
        low, high: Bootstrap interval of the difference over seeds and rows.
        p_rows: Permutation test over rows, these very seeds taken as given.
        p: Test over seeds and rows: normal, with the bootstrap's standard error (counting replicates could
            never be small enough to survive the correction for a hundred comparisons).
        seeds: How many seeds both have. With one, ``p`` knows nothing of what another draw would give.
        holm: ``p`` corrected for all comparisons made together (Holm 1979); 1 until corrected.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_rows: float
    p: float
    seeds: int
    holm: float = 1.0


def summarise(scores: Matrix, *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Mean, sample std over seeds, and interval.

    Args:
        scores: ``(S, R)``.
        resamples: Bootstrap replicates.
        seed: Seed of the replicates.
    """
    return _summary([scores], resamples, seed)


def summarise_tasks(tasks: Sequence[Matrix], *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """The same for the unweighted mean over tasks, whose seeds and rows are resampled task by task.

    Args:
        tasks: One ``(S, R)`` matrix per task; S must agree for the std, which is of the seeds' averages.
        resamples: Bootstrap replicates.
        seed: Seed of the replicates.
    """
    return _summary(tasks, resamples, seed)


def _summary(tasks: Sequence[Matrix], resamples: int, seed: int) -> Summary:
    # each task gets draws of its own: texts of two tasks have nothing to do with one another
    means = np.mean([replicates(scores, resamples, seed + i) for i, scores in enumerate(tasks)], axis=0)
    low, high = _interval(means)
    seeds = min(len(scores) for scores in tasks)
    by_seed = np.mean([scores[:seeds].mean(axis=1) for scores in tasks], axis=0)
    std = float(by_seed.std(ddof=1)) if seeds > 1 else 0.0
    mean = float(np.mean([scores.mean() for scores in tasks]))
    return Summary(mean, std, low, high, seeds)


def replicates(scores: Matrix, resamples: int, seed: int = 0) -> Matrix:
    """Means of draws with replacement of both seeds and rows.

    Args:
        scores: ``(..., S, R)``; all leading entries get the same draws.
        resamples: N, how many draws.
        seed: Seed of the draws.

    Returns:
        ``(..., N)``.
    """
    seed_share, row_share = _shares(*scores.shape[-2:], resamples, seed)
    means: Matrix = ((seed_share @ scores) * row_share).sum(axis=-1)
    return means


@lru_cache(maxsize=32)
def _shares(seeds: int, rows: int, resamples: int, seed: int) -> tuple[Matrix, Matrix]:
    """Weight of each seed ``(N, S)`` and of each row ``(N, R)`` in N draws."""
    generator = np.random.default_rng(seed)
    return (
        generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds,
        generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples) / rows,
    )


def _interval(values: Matrix) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def permutation_p(gaps: Matrix, *, resamples: int = RESAMPLES, seed: int = 0) -> Matrix:
    """Two-sided paired permutation tests over rows.

    Under the null hypothesis the two methods could be exchanged on any row, so the sign of the row's
    difference (mean over seeds) is random.

    Args:
        gaps: ``(C, R)`` differences of C comparisons, mean over seeds.
        resamples: Random sign patterns, the same for all comparisons.
        seed: Their seed.

    Returns:
        ``(C,)`` p-values.
    """
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, size=(resamples, gaps.shape[1])) * 2.0 - 1
    extreme = np.abs(signs @ gaps.T) >= np.abs(gaps.sum(axis=1)) - 1e-9
    p: Matrix = (extreme.sum(axis=0) + 1) / (resamples + 1)
    return p


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values; the order is kept."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [0.0] * len(values)
    so_far = 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, values[index] * (len(values) - rank)))
        corrected[index] = so_far
    return corrected


def compare_all(
    methods: Mapping[str, Matrix],
    seeds: Mapping[str, Sequence[int]] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Every pair of methods on one task, each on the seeds that both have, corrected together.

    Args:
        methods: Name -> ``(S, R)`` scores, of the same rows in the same order.
        seeds: Name -> the S seeds of its scores; the same for all methods when None.
        resamples: Replicates of each test.
        seed: Seed of the replicates.

    Returns:
        The comparisons in the order of the pairs; none of two methods that share no seed.

    Raises:
        ConfigError: The matrices are not of the same rows, or not of their seeds.
    """
    shapes = {name: scores.shape for name, scores in methods.items()}
    if seeds is None:
        seeds = {name: range(shape[0]) for name, shape in shapes.items()}
        uneven = len(set(shapes.values())) > 1
    else:
        wrong = any(len(seeds[name]) != shape[0] for name, shape in shapes.items())
        uneven = wrong or len({rows for _, rows in shapes.values()}) > 1
    if uneven:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ConfigError(f"methods can be compared on the same seeds and rows only, got {listed}")
    groups: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for pair in combinations(methods, 2):
        shared = tuple(sorted(set(seeds[pair[0]]) & set(seeds[pair[1]])))
        if shared:
            groups.setdefault(shared, []).append(pair)
    found: dict[tuple[str, str], Comparison] = {}
    for shared, pairs in groups.items():
        scores = {
            name: methods[name][[list(seeds[name]).index(one) for one in shared]]
            for name in dict.fromkeys(name for pair in pairs for name in pair)
        }
        found |= zip(pairs, _compare(scores, pairs, resamples, seed), strict=True)
    ordered = [found[pair] for pair in combinations(methods, 2) if pair in found]
    corrected = holm([comparison.p for comparison in ordered])
    return [replace(comparison, holm=p) for comparison, p in zip(ordered, corrected, strict=True)]


def _compare(
    methods: Mapping[str, Matrix], pairs: Sequence[tuple[str, str]], resamples: int, seed: int
) -> list[Comparison]:
    """Pairs of methods whose scores are of the same seeds, not yet corrected."""
    means = dict(zip(methods, replicates(np.stack(list(methods.values())), resamples, seed), strict=True))
    by_row = {name: scores.mean(axis=0) for name, scores in methods.items()}
    p_rows = permutation_p(
        np.stack([by_row[i] - by_row[j] for i, j in pairs]), resamples=resamples, seed=seed
    )
    found = []
    for (i, j), p in zip(pairs, p_rows.tolist(), strict=True):
        gap = means[i] - means[j]
        low, high = _interval(gap)
        difference = float(by_row[i].mean() - by_row[j].mean())
        p_both = _normal_p(difference, float(gap.std()))
        found.append(Comparison(i, j, difference, low, high, p, p_both, len(methods[i])))
    return found


def _normal_p(difference: float, error: float) -> float:
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * norm.sf(abs(difference) / error))


def win_matrix(
    names: Sequence[str], comparisons: Mapping[str, Sequence[Comparison]], *, level: float = 1 - LEVEL
) -> NDArray[np.int64]:
    """Tasks on which the row's method is better than the column's, beyond chance.

    Args:
        names: Methods, in the order of rows and columns.
        comparisons: Task -> its comparisons, corrected.
        level: Largest corrected p that counts.

    Returns:
        ``(M, M)`` counts.
    """
    place = {name: index for index, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)), dtype=np.int64)
    for found in comparisons.values():
        for c in found:
            if c.holm <= level and c.first in place and c.second in place:
                better, worse = (c.first, c.second) if c.difference > 0 else (c.second, c.first)
                wins[place[better], place[worse]] += 1
    return wins
