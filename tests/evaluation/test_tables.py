"""Tables from invented records: rows, numbers, flags, refusals; and the paper's numbers as data."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from mp2.errors import ConfigError
from mp2.evaluation import tables
from mp2.evaluation.compared import comparisons
from mp2.evaluation.published import paper_table, published
from mp2.evaluation.records import Record
from mp2.evaluation.results import Results, mixtures
from mp2.evaluation.typeset import Table, Text, comma_separated, escape_latex, html_table, latex, markdown
from mp2.tasks import catalogue
from mp2.tuning.methods import METHODS
from tests.evaluation.invented import record

SUITE = "unseen-task-7"


def _records(methods: dict[str, float], tasks: tuple[str, ...] = catalogue.suite(SUITE)) -> list[Record]:
    return [
        record(m, t, seed, right=right, metric=str(catalogue.get(t).metric), seconds=30.0)
        for seed in (8, 13, 21)
        for t in tasks
        for m, right in methods.items()
    ]


def _row(table: Table, name: str) -> list[str]:
    return next([cell.text for cell in row] for row in table.rows if name in (row[0].text, row[1].text))


def test_table_3_has_our_rows_each_with_the_papers_below() -> None:
    results = Results(_records({"mp2-deep-gd": 0.8, "ppt": 0.5, "head-only": 0.4}))
    table = tables.table_3(results, SUITE)
    assert table is not None
    names = [row[1].text for row in table.rows]
    assert names[:5] == ["ppt", "paper: CPT PPT", "mp2-deep-gd", "paper: Deep MP2", "head-only"]
    assert table.columns[3:] == ("ChnSent", "TNews", "OCNLI", "LCQMC", "DRCD", "C3", "COTE-BD", "Avg")
    cell = results.cell("mp2-deep-gd", "lcqmc")
    assert cell is not None
    means = cell.scores.mean(axis=1)
    expected = f"{100 * means.mean():.1f} ({100 * means.std(ddof=1):.1f})"
    assert _row(table, "mp2-deep-gd")[6] == expected
    assert _row(table, "paper: Deep MP2")[3] == "92.0 (0.1)"
    bold = [row[1].text for row in table.rows for cell in row if cell.bold]
    assert set(bold) == {"mp2-deep-gd"} and len(bold) == 8


def test_a_part_of_a_suite_says_so_and_absent_cells_are_dashes() -> None:
    records = _records({"mp2-deep-gd": 0.8, "ppt": 0.5}, ("lcqmc", "chnsent"))
    records = [r for r in records if (r.method, r.task) != ("ppt", "chnsent")]
    records = [r for r in records if (r.method, r.task, r.seed) != ("ppt", "lcqmc", 8)]
    table = tables.table_3(Results(records), SUITE)
    assert table is not None and table.columns[-1] == "Avg of 2"
    assert _row(table, "ppt")[3] == "–" == _row(table, "ppt")[-1]
    assert _row(table, "ppt")[4].endswith(") [2]") and any(
        note.startswith("[n]: n seeds") for note in table.notes
    )
    assert _row(table, "paper: Deep MP2")[-1] == f"{(92.0 + 83.5) / 2:.1f}"


def test_published_rows_without_an_average_have_none_beside_any_number_of_tasks() -> None:
    every = ("chnsent", "ocnli", "lcqmc", "cote-bd", "c3", "tnews")
    for count in range(1, len(every) + 1):
        table = tables.table_3(Results(_records({"ppt": 0.5}, every[:count])), SUITE)
        assert table is not None
        assert any(row[1].text.startswith("paper: CPM-2") for row in table.rows)


def test_every_cell_of_a_contaminated_task_is_flagged() -> None:
    bare = [record("head-only", "lcqmc", s, bank=None, bank_fingerprint="") for s in (8, 13)]
    results = Results([*_records({"mp2-deep-gd": 0.8}, ("lcqmc", "chnsent")), *bare])
    table = tables.table_3(results, SUITE, {"lcqmc": 0.2})
    assert table is not None and "LCQMC 20.0 %" in table.notes[-1]
    for method in ("mp2-deep-gd", "head-only"):  # its encoder has seen the other task's rows too
        assert _row(table, method)[4].endswith("†") and not _row(table, method)[3].endswith("†")


def test_one_seed_has_no_deviation_and_is_not_the_best() -> None:
    records = _records({"mp2-deep-gd": 0.6, "ppt": 0.9, "spot": 0.5}, ("lcqmc",))
    records = [r for r in records if r.method != "ppt" or r.seed == 8]
    table = tables.table_3(Results(records), SUITE)
    assert table is not None
    cell, average = _row(table, "ppt")[3:]
    assert cell == average and cell.endswith(" [1]") and "(" not in cell
    assert [row[1].text for row in table.rows for item in row if item.bold] == ["mp2-deep-gd"] * 2
    alone = tables.table_3(Results([r for r in records if r.method == "ppt"]), SUITE)
    assert alone is not None and not any(item.bold for row in alone.rows for item in row)


def test_a_task_with_other_shots_alone_has_no_column() -> None:
    swept = [record("ppt", "chnsent", s, shots=4, bank_fingerprint="p") for s in (8, 13)]
    results = Results([*_records({"mp2-deep-gd": 0.8}, ("lcqmc",)), *swept])
    table = tables.table_3(results, SUITE)
    assert table is not None and table.columns[3:] == ("LCQMC", "Avg of 1")
    assert "ppt" not in [row[1].text for row in table.rows]
    assert tables.table_3(Results(swept), SUITE) is None


def test_table_4_is_in_minutes() -> None:
    methods = {"mp2-shallow-bb": 0.7, "mp2-deep-gd": 0.8}
    first = record("mp2-deep-gd", "ocnli", machine={"accelerator": "another machine"})
    slow = {"processor": "EPYC", "cores": 64, "threads": 2}
    table = tables.table_4(
        Results([first, *(replace(r, machine=slow) for r in _records(methods, ("bq", "lcqmc")))])
    )
    assert table is not None and table.notes == ["Ours: EPYC, 2 threads. Paper: CPT-large on one RTX 3090."]
    assert _row(table, "mp2-shallow-bb") == ["mp2-shallow-bb", "–", "0.50", "–", "0.50"]
    assert [cell.text for cell in table.rows[1]][1:] == ["14.46", "7.74", "25.20", "6.70"]
    assert tables.table_4(Results(_records({"mp2-deep-gd": 0.8}))) is None


def test_only_searches_by_forward_passes_are_black_box() -> None:
    kinds = {name: tables.paradigm(name) for name in METHODS}
    assert {name for name, kind in kinds.items() if kind == "BB"} == {
        name for name in METHODS if {"bb", "bbt", "bbtv2"} & set(name.split("-"))
    }
    assert kinds["zero-shot"] == "–" and kinds["setfit"] == kinds["linear-probing"] == "GD"


def test_table_5_takes_the_shipped_bank_for_two_speeds_alone() -> None:
    plain = _records({"mp2-deep-gd": 0.8}, ("lcqmc",))
    slow = [record("mp2-deep-gd", "lcqmc", s, variant="one-speed", bank_fingerprint="s") for s in (8, 13)]
    table = tables.table_5(Results([*plain, *slow]))
    assert table is not None
    kinds = [(row[0].text, row[1].text) for row in table.rows if row[0].text == "mp2-deep-gd"]
    assert kinds == [("mp2-deep-gd", "one-speed"), ("mp2-deep-gd", "two-speed (shipped)")]
    fast = [record("mp2-deep-gd", "lcqmc", s, variant="two-speed", bank_fingerprint="f") for s in (8, 13)]
    table = tables.table_5(Results([*plain, *fast]))
    assert table is not None and _row(table, "one-speed")[2:] == ["–"] * 4
    assert tables.table_5(Results(plain)) is None


def test_table_1_lists_the_banks_of_a_base(base: object) -> None:
    table = tables.table_1(base)  # type: ignore[arg-type]
    assert [row[0].text for row in table.rows][:2] == ["micro, bank deep", "micro, bank shallow"]
    assert len(tables.table_1().rows) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_fingerprint": "x"}, "models: micro"),
        ({"bank_fingerprint": "x"}, "banks: deep c{16}: 1 runs, deep x: 1 runs"),
        ({"versions": {"mp2": "9"}}, "package versions: 0.1.0: 1 runs, 9: 1 runs"),
        ({"method_version": 2}, "method versions: mp2-deep-gd v1"),
        ({"settings": "steps=9"}, "settings: mp2-deep-gd: steps=3: 1 runs, mp2-deep-gd: steps=9"),
        ({"task_version": 2}, "task versions: lcqmc v1"),
        ({"test_key": "x"}, "test rows: lcqmc"),
    ],
)
def test_mixed_records_are_refused_unless_asked(change: dict[str, object], said: str) -> None:
    records = [record(seed=8), record(seed=13, **change)]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"pass --mixed .*\n  {said}"):
        Results(records)
    assert Results(records, mixed=True).objections


def test_a_run_with_fewer_test_rows_is_no_replacement_of_one_with_more() -> None:
    # of 24 rows in all, 0 (all) and 100 take the same ones
    with pytest.raises(ConfigError, match="test rows asked for: mp2-deep-gd on lcqmc, seed 8, all: 1 runs"):
        Results([record(test_limit=0), record(test_limit=100)])


def test_one_model_under_two_paths_is_one_model() -> None:
    Results([record(base="runs/enc"), record(seed=13, base="/data/runs/enc")])
    assert not mixtures([record(seed=8), record(seed=13), record(seed=21, settings="")])


def test_a_bank_is_the_same_by_whatever_path_it_was_found() -> None:
    assert not mixtures([record(seed=8, bank="runs/k-4/bank"), record(seed=13, bank="/here/runs/k-4/bank")])


def test_of_mixed_test_rows_those_are_compared_that_most_have() -> None:
    seeds = (8, 13, 21, 42)
    most = [record(seed=seed, method=name) for seed in seeds for name in ("mp2-deep-gd", "spot")]
    few = [record(rows=7, right=0.4, seed=seed, method="ppt", test_key="few") for seed in seeds]
    few += [record(rows=7, right=0.4, seed=100, test_key="few")]
    results = Results([*most, *few], mixed=True)
    assert [(c.first, c.second) for c in comparisons(results)["lcqmc"]] == [("mp2-deep-gd", "spot")]
    cell = results.cell("mp2-deep-gd", "lcqmc")
    assert cell is not None and cell.seeds == seeds


def test_methods_that_saw_other_rows_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="few-shot draws"):
        Results([record("ppt"), record("spot", draw="other")])


def test_failed_runs_are_left_out_and_remembered_until_redone() -> None:
    failed = record(seed=13, status="failed", error="boom")
    assert Results([record(), failed]).failed == [failed]
    assert Results([record(), failed, record(seed=13)]).failed == []
    with pytest.raises(ConfigError, match="none of the 1 records"):
        Results([failed])


def test_the_papers_averages_are_those_of_its_cells() -> None:
    for suite in tables.SUITE_TITLES:
        for row in published(suite):
            cells = [mean for task, (mean, _) in row.scores.items() if task != "average"]
            if "average" in row.scores:
                assert row.scores["average"][0] == pytest.approx(np.mean(cells), abs=0.11), row
            assert set(row.scores) - {"average"} <= set(catalogue.suite(suite))
            assert not row.method or row.method in METHODS or row.paradigm == "BB"


def test_table_5_of_the_paper_is_the_gradient_rows_of_table_3() -> None:
    kept = {("mp2-shallow-gd", "no"), ("mp2-deep-gd", "yes")}
    rows = {row.method: row for row in published(SUITE)}
    for row in paper_table(5):
        if (row["method"], row["two_speed"]) in kept:
            assert rows[row["method"]].scores[row["task"]][0] == pytest.approx(float(row["mean"]), abs=0.06)


TABLE = Table(
    "t",
    "A & b",
    ("x", "50 % †"),
    [[Text("a_b|c"), Text("1.0", bold=True)], [Text("q"), Text("2", quiet=True)]],
    ["n < 5"],
)


def test_the_forms() -> None:
    assert "| a_b\\|c | **1.0** |" in markdown(TABLE) and "| q | *2* |" in markdown(TABLE)
    assert list(csv.reader(io.StringIO(comma_separated(TABLE)))) == [
        ["x", "50 % †"],
        ["a_b|c", "1.0"],
        ["q", "2"],
    ]
    text = latex(TABLE)
    assert r"a\_b|c & \textbf{1.0} \\" in text and r"\caption{A \& b. n < 5}" in text and r"{lr}" in text
    assert escape_latex("5 % ~ é") == r"5 \% \textasciitilde{} é"
    page = html_table(TABLE)
    assert '<td class="best">1.0</td>' in page and "n &lt; 5" in page and 'id="t"' in page


def test_one_bank_under_two_methods_is_one_bank() -> None:
    records = [record("mp2-deep-gd"), record("mp2-deep-gd-router", bank_fingerprint="x")]
    assert [line.partition(":")[0] for line in mixtures(records)] == ["banks"]
    assert not mixtures([records[0], replace(records[1], variant="fresh")])
    assert not mixtures([records[0], record("ppt", bank_fingerprint="x")])
