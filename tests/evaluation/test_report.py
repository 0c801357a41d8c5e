"""The report from records to files: tables, figures with and without Chinese, one page."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mp2.cli.main import app
from mp2.errors import ConfigError, DataError, WriteError
from mp2.evaluation import drawing, figures
from mp2.evaluation.figures import ablation_figure
from mp2.evaluation.records import Record
from mp2.evaluation.report import build_report, read_leaks
from mp2.evaluation.results import Results
from mp2.model.bank import PromptBank
from mp2.model.checkpoint import Base, TrainedBank
from tests.evaluation.invented import record

CURVE = [
    {"stage": -1, "step": 0, "dev": 0.5},
    *({"stage": s, "step": k, "dev": 0.6 + s / 10 + k / 100} for s in (0, 1) for k in (5, 10)),
]
PLAIN = ("mp2-shallow-gd", "ppt")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = []
    for seed in (8, 13):
        for method in PLAIN:
            for task in ("bq", "lcqmc", "iflytek-10", "iflytek-30"):
                found.append(record(method, task, seed, curve=CURVE, bank_fingerprint=method))
            for shots in (4, 16):
                found.append(
                    record(
                        method, "lcqmc", seed, shots=shots, bank_fingerprint=method, draw=f"{seed}/{shots}"
                    )
                )
        for k in (1, 4):
            found.append(record("mp2-shallow-gd", "lcqmc", seed, variant=f"k-{k}", bank_fingerprint=f"{k}"))
    return found


@pytest.fixture(params=["with a Chinese font", "without"])
def fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without":
        monkeypatch.setattr(drawing, "chinese_font", lambda: None)
        monkeypatch.setattr(figures, "chinese_font", lambda: None)
        return False
    if drawing.chinese_font() is None:
        pytest.skip("no font with Chinese glyphs here")
    return True


class _Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "xlink:href") and value and value.startswith("#"):
                self.links.append(value[1:])
            if name in ("src", "href") and value and not value.startswith("#"):
                self.outside.append(value)


def test_all_files_are_written_and_the_page_stands_alone(
    records: list[Record], base: Base, tmp_path: Path, fonts: bool
) -> None:
    ours = [replace(r, base_fingerprint=base.fingerprint, bank=f"runs/{r.method}/bank") for r in records]
    report = build_report(Results(ours), base=base)
    assert {"figure3", "figure4a", "figure4b", "ablation-k"} <= set(report.figures)
    files = {str(path.relative_to(tmp_path)) for path in report.write(tmp_path)}
    assert {
        "report.md",
        "report.html",
        "tables/cells.csv",
        "figures/figure3.png",
        "figures/figure3.svg",
    } <= files
    assert (tmp_path / "figures" / "figure4a.png").read_bytes().startswith(b"\x89PNG")
    parser = _Ids()
    text = (tmp_path / "report.html").read_text("utf-8")
    parser.feed(text)
    assert len(parser.ids) == len(set(parser.ids)) and set(parser.links) <= set(parser.ids)
    assert not parser.outside and "<script" not in text
    for link in re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text("utf-8")):
        assert (tmp_path / link).is_file()


def test_labels_are_chinese_only_where_they_can_be_drawn(records: list[Record], fonts: bool) -> None:
    figure = figures.figure_4a(Results(records))
    assert figure is not None
    assert ("准确率" in figure.axes[0].get_ylabel()) == fonts
    assert figure.axes[0].get_ylabel().startswith("accuracy")


def test_figures_are_the_same_each_time(records: list[Record]) -> None:
    made = [drawing.svg(figures.all_figures(Results(records))["figure4a"]) for _ in range(2)]
    assert made[0] == made[1]


def test_figure_3_draws_the_mean_and_the_stage_line(records: list[Record]) -> None:
    figure = figures.figure_3(Results(records))
    assert figure is not None and len(figure.axes) == 2
    line, border = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 0.5, 1, 1.5, 2]  # type: ignore[union-attr]
    assert line.get_ydata() == pytest.approx([50, 65, 70, 75, 80])
    assert list(border.get_xdata()) == [1, 1]
    assert figure.axes[0].get_title() == "mp2-shallow-gd · BQ, 2 seeds"


def test_figure_3_gives_each_stage_its_budget_not_its_last_score() -> None:
    settings = "Bayes(calls=100, random=20) -> Cma(calls=1900, rounds=0)"
    places = {8: ((0, 40), (0, 80)), 13: ((0, 50), (1, 950), (1, 1900))}  # one was stopped early
    runs = [
        record(
            "mp2-deep-bb",
            "lcqmc",
            seed,
            settings=settings,
            curve=[{"stage": s, "step": k, "dev": 0.5} for s, k in ((-1, 0), *points)],
        )
        for seed, points in places.items()
    ]
    figure = figures.figure_3(Results(runs))
    assert figure is not None
    line, border = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 0.4, 0.5, 0.8, 1.5, 2]  # type: ignore[union-attr]
    assert list(border.get_xdata()) == [1, 1]
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["0", "50", "100", "950", "1900"]


def test_curves_tell_seeds_and_the_steps_of_their_banks(records: list[Record]) -> None:
    swept = figures.figure_4b(Results(records))
    assert swept is not None
    legend = swept.axes[0].get_legend()
    assert legend is not None and legend.get_texts()[0].get_text().endswith(", 2 seeds")
    known = [replace(r, bank_steps=60) if r.variant else r for r in records]
    titles = []
    for each in (records, known):
        figure = figures.ablation_figure(Results(each), "k")
        assert figure is not None
        titles.append(figure.axes[0].get_title())
    assert titles == ["", "banks of 60 steps"]


def test_an_ablation_is_drawn_of_what_its_variants_share() -> None:
    def drawn(*each: Record) -> bool:
        return ablation_figure(Results(each), "k") is not None

    four = record(variant="k-4", bank_fingerprint="d" * 16)
    eight = record(variant="k-8", bank_fingerprint="e" * 16)
    assert drawn(four, eight)
    assert not drawn(four, replace(eight, shots=8))  # other shots are another figure's
    assert not drawn(four, replace(eight, task="ocnli", test_key="other"))


def test_figure_5_orders_rows_as_the_tree_does_and_colours_families(base: Base) -> None:
    bank = base.bank("deep")
    names = ("lcqmc", "chnsent", "bq", "tnews")
    figure = figures.figure_5(
        type(bank)("x", bank.bank, bank.router.repeat(2, 1, 1), names, bank.head)  # two tasks, twice each
    )
    ticks = figure.axes[1].get_yticklabels()
    labels = [text.get_text().split()[0] for text in ticks]
    assert {frozenset(labels[:2]), frozenset(labels[2:])} == {frozenset(names[::2]), frozenset(names[1::2])}
    colours = {label: text.get_color() for label, text in zip(labels, ticks, strict=True)}
    assert colours["lcqmc"] == colours["bq"] != colours["chnsent"] == colours["tnews"]
    assert "same family: 100 % of tasks (by chance 3" in figure.get_suptitle()
    low, high = figure.axes[1].images[0].get_clim()
    gates = bank.router.sigmoid()
    assert (low, high) == pytest.approx((gates.min().item(), gates.max().item()))


def test_figure_5_is_of_banks_whose_router_decides(base: Base) -> None:
    bank = base.bank("deep")
    router = bank.router.repeat(2, 1, 1)
    many = TrainedBank("many", bank.bank, router, ("a", "b", "c", "d"), bank.head)
    single = PromptBank(replace(bank.bank.config, modules=1))
    one = TrainedBank("one", single, router[..., :1], ("a", "b", "c", "d"), bank.head)
    plain = Results([record("head-only", bank=None, bank_fingerprint="")])
    assert list(figures.all_figures(plain, [many, one])) == ["figure5-many"]


def test_tasks_of_no_known_family_count_in_no_percentage(base: Base) -> None:
    bank = base.bank("deep")
    router = torch.cat([bank.router, bank.router + 0.1, bank.router[:1]])
    names = ("lcqmc", "chnsent", "bq", "tnews", "mine")
    shown = figures.figure_5(TrainedBank("x", bank.bank, router, names, bank.head))
    alone = figures.figure_5(TrainedBank("x", bank.bank, router[:4], names[:4], bank.head))
    assert shown.get_suptitle() == alone.get_suptitle() != ""


def test_no_upstream_task_stands_a_step_before_the_fewest() -> None:
    runs = [
        record(variant=f"tasks-{n}", bank_fingerprint=f"{n}", seed=s) for n in (0, 5, 10) for s in (8, 13)
    ]
    figure = figures.ablation_figure(Results(runs), "tasks")
    assert figure is not None
    assert np.diff(figure.axes[0].get_xticks()) == pytest.approx(1)


def test_agreement_counts_nearest_rows_of_the_same_kind() -> None:
    rows = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.2]])
    share, chance, p = figures.agreement(rows, ["a", "a", "b", "b", "c", "c"])
    assert share == 1 and chance == pytest.approx(1 / 5, abs=0.01) and p == pytest.approx(1 / 15, abs=0.01)
    share, chance, p = figures.agreement(rows, ["a", "b", "a", "b", "a", "b"])
    assert share == 0 and chance == pytest.approx(2 / 5, abs=0.01) and p == 1


def test_too_little_for_a_figure_is_no_figure() -> None:
    assert figures.all_figures(Results([record("head-only", bank=None, bank_fingerprint="")])) == {}


def test_uncommitted_changes_stand_out(records: list[Record]) -> None:
    dirty = replace(records[0], versions={**records[0].versions, "git": "abc-dirty"})
    remarks = build_report(Results([dirty, *records[1:]])).remarks
    assert remarks[0] == "records of 2 commits of one version: abc, abc-dirty"
    assert remarks[1].endswith("no commit makes them again: 1 of abc-dirty") and len(remarks) == 2
    assert build_report(Results(records)).remarks == []


def test_leaks_are_the_largest_share_with_another_task(tmp_path: Path) -> None:
    path = tmp_path / "leaks.json"
    rows = [
        ("chnsent/test", "online/train", 60, 70, 100, 900),
        ("waimai/dev", "chnsent/test", 5, 10, 50, 100),
    ]
    rows.append(("chnsent/pool", "chnsent/test", 90, 90, 1000, 100))
    keys = ("first", "second", "first_rows", "second_rows", "first_size", "second_size")
    path.write_text(json.dumps({"overlaps": [dict(zip(keys, row, strict=True)) for row in rows]}), "utf-8")
    assert read_leaks(path) == {"chnsent": 0.6}
    path.write_text("[]", "utf-8")
    with pytest.raises(DataError, match="expected the output of 'mp2 data leaks --json'"):
        read_leaks(path)


def test_the_command_prints_and_writes(records: list[Record], tmp_path: Path) -> None:
    path, out = tmp_path / "r.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"format": 1, **asdict(r)}) + "\n" for r in records), "utf-8")
    done = CliRunner().invoke(app, ["report", str(path), "--out", str(out)])
    assert done.exit_code == 0 and (out / "report.html").is_file()
    shown = CliRunner().invoke(app, ["report", str(path)])
    assert "paper: Shallow MP2" in shown.output
    (out / "tables" / "old.csv").write_text("")
    again = CliRunner().invoke(app, ["report", str(path), "--out", str(out)])
    assert "not of this report, from one before: old.csv" in again.output
    (out / "report.md").write_text("kept")
    (out / "tables" / "cells.csv").unlink()
    (out / "tables" / "cells.csv").mkdir()
    half = CliRunner().invoke(app, ["report", str(path), "--out", str(out)])
    assert isinstance(half.exception, WriteError) and (out / "report.md").read_text() == "kept"
    other = CliRunner().invoke(app, ["report", str(path), "--model", "mp2-tiny-zh"])
    assert isinstance(other.exception, ConfigError) and "the records are of micro" in str(other.exception)
    twice = CliRunner().invoke(app, ["report", str(path), str(path)])
    assert isinstance(twice.exception, DataError)


def test_records_of_another_bank_of_the_models_are_told(base: Base) -> None:
    def of(**facts: str) -> Results:
        return Results([record(base="micro", base_fingerprint=base.fingerprint, **facts)])

    build_report(of(bank_fingerprint=base.bank_fingerprint("deep")), base=base)
    build_report(of(variant="k-4"), base=base)
    with pytest.raises(ConfigError, match=r"micro has the bank deep .*, the records of mp2-deep-gd are"):
        build_report(of(), base=base)


def test_the_evaluate_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MP2_DATA", raising=False)
    common = ["evaluate", "--suite", "lcqmc", "--methods", "zero-shot", "--out", str(tmp_path / "r.jsonl")]
    for extra, said in (
        ([], "give the folder of the data sets"),
        (["--root", str(tmp_path), "--seeds", "a"], "--seeds: expected whole numbers"),
        (["--root", str(tmp_path), "--bank", "deep"], "expected NAME=FOLDER"),
        (["--root", str(tmp_path), "--set", "a=1", "--set", "a=2"], "a stands twice, as '1' and '2'"),
    ):
        done = CliRunner().invoke(app, [*common, *extra])
        assert isinstance(done.exception, ConfigError) and said in str(done.exception)


def test_the_methods_command_lists_every_row() -> None:
    from mp2.tuning.methods import METHODS

    done = CliRunner().invoke(app, ["methods"])
    assert all(name in done.output for name in METHODS)
    rows = json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    assert [row["name"] for row in rows] == list(METHODS)
