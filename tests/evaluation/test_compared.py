"""Methods against one another, from invented records: averages, differences, wins, pairs."""

from __future__ import annotations

from itertools import combinations

import pytest

from mp2.evaluation import compared, tables
from mp2.evaluation.records import Record
from mp2.evaluation.results import Results
from mp2.evaluation.typeset import Table
from mp2.tasks import catalogue
from tests.evaluation.invented import record

SUITE = "unseen-task-7"
SEEDS = (8, 13, 21)


def _records(
    methods: dict[str, float], tasks: tuple[str, ...] = ("lcqmc", "chnsent"), seeds: tuple[int, ...] = SEEDS
) -> list[Record]:
    return [
        record(m, t, seed, right=right, metric=str(catalogue.get(t).metric), bank_fingerprint=m)
        for seed in seeds
        for t in tasks
        for m, right in methods.items()
    ]


def _row(table: Table | None, name: str) -> list[str]:
    assert table is not None
    return next([cell.text for cell in row[1:]] for row in table.rows if row[0].text == name)


def test_averages_wins_and_long_forms() -> None:
    results = Results(_records({"mp2-deep-gd": 0.8, "ppt": 0.5}, catalogue.suite(SUITE)))
    found = compared.comparisons(results)
    average, wins = compared.averages(results, SUITE), compared.wins(results, SUITE, found)
    assert average is not None and [row[0].text for row in average.rows] == ["mp2-deep-gd", "ppt"]
    assert _row(wins, "mp2-deep-gd") == ["7", ""] and _row(wins, "ppt") == ["", "0"]
    assert len(tables.cells_table(results).rows) == 14
    pairs = compared.pairs_table(found).rows
    assert len(pairs) == 8 and pairs[-1][0].text == "average of unseen-task-7"
    assert compared.averages(results, "unseen-data-7") is None


def test_averages_tell_their_seeds() -> None:
    records = _records({"mp2-deep-gd": 0.8, "ppt": 0.5, "spot": 0.4})
    records = [r for r in records if r.method != "ppt" or r.task == "lcqmc" or r.seed == 8]
    records = [r for r in records if r.method != "spot" or r.seed == 8]
    table = compared.averages(Results(records), SUITE)
    assert [_row(table, name)[0] for name in ("mp2-deep-gd", "ppt", "spot")] == ["3", "1 to 3", "1"]
    assert _row(table, "spot")[3] == "–" != _row(table, "mp2-deep-gd")[3]


def test_differences_of_averages_are_signed_and_marked() -> None:
    results = Results(_records({"ppt": 0.5, "mp2-deep-gd": 0.8, "spot": 0.5}))
    found = compared.comparisons(results)
    table = compared.differences(found, SUITE)
    assert table is not None and table.columns[1] == "mp2-deep-gd"  # the best first
    means = {}
    for method in results.methods():
        cells = [results.cell(method, task) for task in ("chnsent", "lcqmc")]
        means[method] = sum(100 * cell.scores.mean() for cell in cells if cell) / 2
    for one, two in combinations(table.columns[1:], 2):
        text = _row(table, one)[table.columns.index(two) - 1]
        back = _row(table, two)[table.columns.index(one) - 1]
        assert float(text.rstrip("*")) == pytest.approx(means[one] - means[two], abs=0.051)
        assert float(back.rstrip("*")) == -float(text.rstrip("*"))
        assert text.endswith("*") == back.endswith("*") == (one == "mp2-deep-gd")
    assert compared.differences(found, "unseen-data-7") is None


def test_an_average_is_compared_from_two_seeds_of_each_task_on() -> None:
    records = _records({"mp2-deep-gd": 0.8, "ppt": 0.5, "spot": 0.5})
    two = [r for r in records if r.method != "ppt" or r.seed > 8]
    row = _row(compared.differences(compared.comparisons(Results(two)), SUITE), "ppt")
    assert "–" not in row
    one = [r for r in two if (r.method, r.task, r.seed) != ("ppt", "lcqmc", 13)]
    table = compared.differences(compared.comparisons(Results(one)), SUITE)
    assert table is not None and set(table.columns[1:]) == {"mp2-deep-gd", "spot"}


def test_a_pair_is_compared_on_the_seeds_that_both_have() -> None:
    records = _records({"mp2-deep-gd": 0.8, "ppt": 0.5, "spot": 0.6}, ("lcqmc",))
    several = Results([r for r in records if r.method != "spot" or r.seed > 8])
    found = compared.comparisons(several)
    assert list(found) == ["lcqmc"]  # the average of one task is the task
    assert [(c.first, c.second, c.seeds) for c in found["lcqmc"]] == [("mp2-deep-gd", "ppt", 3)]
    without = compared.comparisons(Results([r for r in records if r.method != "spot"]))
    assert found == without  # a method with fewer seeds changes nothing
    wins = compared.wins(several, SUITE, found)
    assert _row(wins, "mp2-deep-gd") == ["1", "–", ""] and _row(wins, "spot") == ["–", "", "–"]


def test_a_task_with_other_shots_alone_is_compared_with_nothing() -> None:
    swept = [record(m, "chnsent", s, shots=4, bank_fingerprint=m) for s in SEEDS for m in ("ppt", "spot")]
    results = Results([*_records({"mp2-deep-gd": 0.8, "head-only": 0.5}, ("lcqmc",)), *swept])
    found = compared.comparisons(results)
    assert found["chnsent"] == [] and len(found["lcqmc"]) == 1
    wins = compared.wins(results, SUITE, found)
    assert wins is not None and wins.columns[1:] == ("mp2-deep-gd", "head-only")
