"""Settings of stages on the command line's terms: where they apply, what is refused, what records say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mp2.data.prepare import prepare
from mp2.errors import ConfigError, DataError
from mp2.evaluation.grid import Bench, Grid, run_grid
from mp2.evaluation.protocol import FewShotTask
from mp2.evaluation.records import read_records
from mp2.evaluation.results import Results
from mp2.evaluation.settings import with_settings
from mp2.evaluation.variants import variants_table
from mp2.model.checkpoint import Base
from mp2.tuning.methods import Method, get_method
from mp2.tuning.stages import Bayes, Cma, Gradient
from tests.data.invented import rows_of, task, write_jsonl
from tests.evaluation.invented import record, write_data


def _two_stages() -> Method:
    stages = (Gradient({"router": 0.3}, steps=16), Gradient({"prompts": 0.05, "head": 0.01}, steps=16))
    return Method("two", stages, bank="deep")


def test_a_setting_reaches_every_stage_that_has_it_or_the_one_that_is_named() -> None:
    method = _two_stages()
    (both,) = with_settings([method], {"steps": "3", "lr.prompts": "0.5"})
    first, second = both.stages
    assert isinstance(first, Gradient) and isinstance(second, Gradient)
    assert (first.steps, second.steps) == (3, 3)
    assert first.lr == {"router": 0.3} and second.lr == {"prompts": 0.5, "head": 0.01}
    (one,) = with_settings([method], {"2.steps": "7"})
    assert [stage.steps for stage in one.stages] == [16, 7]  # type: ignore[union-attr]
    assert method == _two_stages()
    (searched,) = with_settings([get_method("mp2-deep-bb")], {"transfer": "false", "popsize": "8"})
    bayes, cma = searched.stages
    assert isinstance(bayes, Bayes) and isinstance(cma, Cma)
    assert bayes.transfer is False and cma.popsize == 8
    (searched,) = with_settings([searched], {"sigma": "0.2, 0.3"})
    assert isinstance(searched.stages[1], Cma) and searched.stages[1].sigma == (0.2, 0.3)


def test_the_order_of_settings_decides_nothing() -> None:
    for settings in ({"2.calls": "300", "calls": "500"}, {"calls": "500", "2.calls": "300"}):
        (searched,) = with_settings([get_method("mp2-deep-bb")], settings)
        assert [stage.calls for stage in searched.stages] == [500, 300]  # type: ignore[union-attr]
    for settings in ({"2.calls": "400", "2.rounds": "6"}, {"2.rounds": "6", "2.calls": "400"}):
        with pytest.raises(ConfigError, match=r"no method here has a setting '2\.calls'"):
            with_settings([get_method("mp2-deep-bb")], settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr.prompt": "1"}, "no method here has a setting 'lr.prompt'; did you mean 'lr.prompts'"),
        ({"3.steps": "1"}, "no method here has a setting '3.steps'; did you mean"),
        ({"steps": "few"}, "setting steps: expected a whole number, got 'few'"),
        ({"lr.head": "x"}, "setting lr.head: expected a number, got 'x'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_settings([get_method("mp2-deep-gd")], settings)
    with pytest.raises(ConfigError, match="expected true or false, got 'on'"):
        with_settings([get_method("mp2-deep-bb")], {"transfer": "on"})
    with pytest.raises(ConfigError, match=r"no method here has a setting '2\.calls'"):
        with_settings([get_method("mp2-deep-bb-released")], {"2.calls": "200"})  # its rounds say how many
    with pytest.raises(ConfigError, match="setting strengths: expected numbers of at least 0"):
        with_settings([get_method("linear-probing")], {"strengths": "0.1,-1"})


def test_other_settings_and_splits_need_a_name_and_stand_in_the_records(base: Base, tmp_path: Path) -> None:
    root, out = write_data(tmp_path / "data"), tmp_path / "records.jsonl"
    plain = Grid(("chnsent",), ("mp2-deep-gd-router",), (8,), root, tmp_path / "cache", shots=(4,))
    with pytest.raises(ConfigError, match="other settings make another experiment: name it with a variant"):
        replace(plain, settings={"steps": "1"})
    with pytest.raises(ConfigError, match="other splits make another experiment"):
        replace(plain, splits=("train", "dev"))
    with pytest.raises(DataError, match="chnsent has no split 'train'"):
        Bench(replace(plain, splits=("train", "dev"), variant="v"), base)
    for steps in ("1", "2"):
        other = replace(plain, variant=f"steps={steps}", settings={"steps": steps, "eval_every": "1"})
        assert run_grid(other, out, base=base, say=lambda _: None) == (1, 0)
    assert all(f"steps={r.calls}" in r.settings for r in read_records([out]))
    half = replace(other, variant="half", precision="bf16")
    assert run_grid(half, out, base=base, say=lambda _: None) == (1, 0)
    assert [r.variant for r in read_records([out]) if "bf16 products" in r.settings] == ["half"]
    found = {r.variant: r.calls for r in read_records([out]) if r.variant != "half"}
    assert found == {"steps=1": 1, "steps=2": 2}


def test_settings_are_chosen_on_rows_of_train_and_dev(base: Base, tmp_path: Path) -> None:
    spec = task("upstream", suffix="jsonl")
    for name, count in (("train", 60), ("test", 20)):
        write_jsonl(tmp_path / "upstream" / f"{name}.jsonl", rows_of("classification", count))
    made = prepare([spec], tmp_path, base.encoder(), tmp_path / "cache", protect=[])
    few = FewShotTask(made["upstream"], base.encoder, splits=("train", "dev"))
    draw = few.draw(8, 2)
    assert len(draw.train) == len(draw.dev) > 0
    dev = {e.segments[1].text for e in made["upstream"].split("dev").examples(range(len(few.test_examples)))}
    assert {e.segments[1].text for e in few.test_examples} == dev


def test_variants_are_ranked_on_the_tasks_and_seeds_that_all_of_them_ran() -> None:
    rows = [
        record(
            "mp2-deep-gd",
            name,
            seed,
            right=right,
            variant=variant,
            bank_fingerprint=variant,
            bank_steps=steps,
        )
        for variant, right, steps, names, seeds in (
            ("", 0.6, 240, ("lcqmc", "chnsent", "ocnli"), (8, 13, 21)),
            ("k-1", 0.5, 60, ("lcqmc", "chnsent"), (8, 13)),
            ("k-4", 0.8, 0, ("lcqmc",), (13, 8, 42)),
        )
        for name in names
        for seed in seeds
    ]
    copies = [replace(r, variant="tasks-29") for r in rows if r.variant == "k-1"]
    table = variants_table(Results([*rows, *copies]))
    assert table is not None and table.columns[2:6] == ("Bank steps", "Seeds", "LCQMC", "ChnSent")
    assert [[cell.text for cell in row[1:4]] for row in table.rows] == [
        ["k-4", "–", "2"],
        ["(plain)", "240", "2"],
        ["k-1 = tasks-29", "60", "2"],
    ]
    plain = Results([r for r in rows if not r.variant and r.seed != 21]).cell("mp2-deep-gd", "lcqmc")
    assert plain is not None
    expected = f"{100 * plain.scores.mean():.1f}"
    assert table.rows[1][4].text.startswith(f"{expected} (") and table.rows[1][-2].text == expected
    assert table.rows[0][5].text == "–" != table.rows[1][5].text  # one variant has it not
    assert variants_table(Results([r for r in rows if not r.variant])) is None
    apart = variants_table(Results([*rows, replace(rows[0], variant="k-2", seed=100)]))  # shares no seed
    assert apart is not None and [row[1:] for row in apart.rows] == [
        row[1:] for row in (variants_table(Results(rows)) or apart).rows
    ]
