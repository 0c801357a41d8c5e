"""What five seeds and a few hundred test rows can tell: intervals, paired tests, corrections, wins.

Scores of one method on one task are a matrix ``(S, R)``: seeds by test rows. Both are samples (of few-shot
draws, and of texts), so intervals and tests count the spread of both; methods are compared on the same seeds
and the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from mp2.errors import ConfigError

Matrix = NDArray[np.float64]
Sample = tuple[Sequence[int], Matrix]  # seeds, and their scores (S, R)
RESAMPLES = 2000
LEVEL = 0.95
# Of the seeds, over all tasks: three seeds of one task, or two of each of several. Of two seeds of one task
# the spread is a single difference, and p far below .05 comes several times too often.
LEAST_FREEDOM = 2


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over tasks, seeds and rows with its spread.

    Attributes:
        mean: Mean score.
        std: Sample standard deviation of the seeds' means (S - 1); None with one seed.
        low, high: Bootstrap interval of the mean over seeds and rows; with one seed over rows alone.
        seeds: S, the fewest of any task.
    """

    mean: float
    std: float | None
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods on the same seeds and rows of one or several tasks.

    Attributes:
        first, second: The methods.
        difference: Mean of the first minus mean of the second.
        low, high: Interval of the difference, by the same test as ``p``.
        p: t-test over seeds and rows (:func:`spread`).
        seeds: How many seeds both have, the fewest of any task.
        p_rows: Permutation test over rows, these very seeds taken as given.
        holm: ``p`` corrected for all comparisons made together (Holm 1979).
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    seeds: int
    p_rows: float = 1.0
    holm: float = 1.0


def summarise(tasks: Sequence[Matrix]) -> Summary:
    """Unweighted mean over tasks, sample std over seeds, and interval.

    Args:
        tasks: One ``(S, R)`` matrix per task. Where S differs, the std is of the first seeds of each.
    """
    # each task gets draws of its own: texts of two tasks have nothing to do with one another
    means = np.mean([replicates(scores, seed=i) for i, scores in enumerate(tasks)], axis=0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    seeds = min(len(scores) for scores in tasks)
    by_seed = np.mean([scores[:seeds].mean(axis=1) for scores in tasks], axis=0)
    std = float(by_seed.std(ddof=1)) if seeds > 1 else None
    mean = float(np.mean([scores.mean() for scores in tasks]))
    return Summary(mean, std, float(low), float(high), seeds)


def replicates(scores: Matrix, *, resamples: int = RESAMPLES, seed: int = 0) -> Matrix:
    """Means of draws with replacement of both seeds and rows.

    Args:
        scores: ``(S, R)``.
        resamples: N, how many draws.
        seed: Seed of the draws.

    Returns:
        ``(N,)``.
    """
    seed_counts, row_counts = _counts(*scores.shape, resamples, seed)
    means: Matrix = ((row_counts @ scores.T) * seed_counts).sum(axis=1) / scores.size
    return means


@lru_cache(maxsize=32)
def _counts(seeds: int, rows: int, resamples: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """How often each seed ``(N, S)`` and each row ``(N, R)`` comes in N draws."""
    generator = np.random.default_rng(seed)
    many = [generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (seeds, rows)]
    return many[0].astype(np.uint8), many[1].astype(np.uint8)


def spread(gaps: Sequence[Matrix]) -> tuple[float, float]:
    """Variance of a mean over tasks, seeds and rows, and its degrees of freedom.

    Every task gives two parts, the variance of its seeds' means over S and that of its rows' means over R
    (what both share, the noise of single answers, counts twice: a little too wide rather than too narrow).
    The degrees of freedom of their sum are Satterthwaite's, so that a few seeds weigh as much as they vary.

    Args:
        gaps: One ``(S, R)`` matrix per task, S and R at least 2.

    Returns:
        Variance and degrees of freedom; 1 where nothing varies.
    """
    means = [gap.mean(axis=axis) for gap in gaps for axis in (1, 0)]
    parts = np.array([mean.var(ddof=1) / len(mean) for mean in means]) / len(gaps) ** 2
    if not parts.any():
        return 0.0, 1.0
    free = np.array([len(mean) - 1 for mean in means])
    return float(parts.sum()), float(parts.sum() ** 2 / (parts**2 / free).sum())


def permutation_p(tasks: Sequence[Matrix], *, resamples: int = RESAMPLES) -> Matrix:
    """Two-sided paired permutation tests over rows, of the mean over tasks.

    Under the null hypothesis the two methods could be exchanged on any row, so the sign of the row's
    difference (mean over seeds) is random.

    Args:
        tasks: For each task the differences ``(C, R)`` of C comparisons, mean over seeds.
        resamples: Random sign patterns, the same for all comparisons.

    Returns:
        ``(C,)`` p-values.
    """
    observed = np.mean([gaps.mean(axis=1) for gaps in tasks], axis=0)
    drawn = np.zeros((resamples, len(observed)))
    for seed, gaps in enumerate(tasks):
        rows = gaps.shape[1]
        signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, rows)) * 2.0 - 1
        drawn += signs @ gaps.T / (rows * len(tasks))
    extreme = np.abs(drawn) >= np.abs(observed) - 1e-12
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


def compare_all(methods: Mapping[str, Sequence[Sample]]) -> list[Comparison]:
    """Every pair of methods, each on the seeds that both have, corrected together.

    Args:
        methods: Name -> its sample of each task; the tasks, and the rows of a task, are the same for all.

    Returns:
        The comparisons in the order of the pairs; none of two methods that share too few seeds to tell.

    Raises:
        ConfigError: The samples of a task are not of the same rows.
    """
    for samples in zip(*methods.values(), strict=True):
        if len({scores.shape[1] for _, scores in samples}) > 1:
            shapes = [scores.shape for _, scores in samples]
            listed = ", ".join(f"{name} {shape}" for name, shape in zip(methods, shapes, strict=True))
            raise ConfigError(f"methods can be compared on the same rows only, got {listed}")
    gaps = {pair: _gaps(methods[pair[0]], methods[pair[1]]) for pair in combinations(methods, 2)}
    gaps = {pair: each for pair, each in gaps.items() if _can_tell(each)}
    if not gaps:
        return []
    p_rows = permutation_p(
        [np.stack([gap.mean(axis=0) for gap in task]) for task in zip(*gaps.values(), strict=True)]
    )
    found = [_compare(*pair, each) for pair, each in gaps.items()]
    corrected = holm([comparison.p for comparison in found])
    return [
        replace(comparison, p_rows=rows, holm=p)
        for comparison, rows, p in zip(found, p_rows.tolist(), corrected, strict=True)
    ]


def _gaps(first: Sequence[Sample], second: Sequence[Sample]) -> list[Matrix]:
    """Differences of two methods on each task, ``(S, R)`` over the seeds that both have."""
    gaps = []
    for (ours, one), (theirs, two) in zip(first, second, strict=True):
        shared = sorted(set(ours) & set(theirs))
        gaps.append(one[[list(ours).index(s) for s in shared]] - two[[list(theirs).index(s) for s in shared]])
    return gaps


def _can_tell(gaps: Sequence[Matrix]) -> bool:
    free = [len(gap) - 1 for gap in gaps]
    return min(free) > 0 and sum(free) >= LEAST_FREEDOM


def _compare(first: str, second: str, gaps: Sequence[Matrix]) -> Comparison:
    """Two methods, not yet corrected."""
    difference = float(np.mean([gap.mean() for gap in gaps]))
    variance, free = spread(gaps)
    error = variance**0.5
    p = float(2 * t.sf(abs(difference) / error, free)) if error else float(difference == 0)
    reach = float(t.ppf((1 + LEVEL) / 2, free)) * error
    seeds = min(map(len, gaps))
    return Comparison(first, second, difference, difference - reach, difference + reach, p, seeds)


def win_matrix(names: Sequence[str], comparisons: Mapping[str, Sequence[Comparison]]) -> NDArray[np.int64]:
    """Tasks on which the row's method is better than the column's, beyond chance (corrected p of .05).

    Args:
        names: Methods, in the order of rows and columns.
        comparisons: Task -> its comparisons, corrected.

    Returns:
        ``(M, M)`` counts; -1 for two methods that were compared on no task.
    """
    place = {name: index for index, name in enumerate(names)}
    wins = np.full((len(names), len(names)), -1)
    for c in (c for found in comparisons.values() for c in found if {c.first, c.second} <= place.keys()):
        one, two = place[c.first], place[c.second]
        for better, worse, gap in ((one, two, c.difference), (two, one, -c.difference)):
            counts = int(c.holm <= 1 - LEVEL and gap > 0)
            wins[better, worse] = max(wins[better, worse], 0) + counts
    return wins
