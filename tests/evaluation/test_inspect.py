"""Looking into routers: neighbours, used modules, knock-outs, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mp2.cli.main import app
from mp2.errors import CheckpointError, ConfigError
from mp2.evaluation.inspect import (
    adapter_router,
    inspect_adapter,
    inspect_bank,
    inspect_router,
    likeness,
    without,
)
from mp2.model.checkpoint import Base
from mp2.tuning.adapter import Adapter
from mp2.tuning.methods import get_method
from mp2.tuning.stages import Gradient
from mp2.tuning.tune import tune
from tests.tuning.shots import review_rows, review_task


def _adapter(base: Base, name: str = "mp2-deep-gd-router") -> Adapter:
    row = get_method(name)
    quick = tuple(
        Gradient(stage.lr, steps=2, eval_every=1) for stage in row.stages if isinstance(stage, Gradient)
    )
    task = review_task()
    return tune(base, task, *review_rows(task), replace(row, stages=quick), seed=1)


def test_a_router_is_most_like_the_task_it_was_copied_from(base: Base) -> None:
    bank = base.bank("deep")
    found = inspect_router("mine", bank.router[1], bank)
    assert found.nearest[0] == ("beta", pytest.approx(1.0, abs=1e-5)) and found.nearest[1][1] < 0.5
    assert [item.nearest[0][0] for item in inspect_bank(bank)] == ["beta", "alpha"]
    gates = torch.tensor(found.gates)
    assert found.used == [tuple(place) for place in (gates > 0.5).nonzero().tolist()]
    assert likeness(bank.router[0], bank.router).tolist() == pytest.approx([1.0, -1.0], abs=1e-5)


def test_a_router_of_another_shape_is_refused(base: Base) -> None:
    with pytest.raises(CheckpointError, match=r"expected \(3, 3\) as bank 'deep', got \(1, 3\)"):
        inspect_router("mine", base.bank("shallow").router[0], base.bank("deep"))


def test_knock_outs_are_measured_on_labelled_rows(base: Base) -> None:
    adapter = _adapter(base)
    _, dev = review_rows(review_task())
    found = inspect_adapter(adapter, base, dev)
    assert found.score == adapter.facts["dev"]
    assert len(found.knockouts) == 3 and all(len(layer) == 3 for layer in found.knockouts)
    assert all(-1 <= drop <= 1 for layer in found.knockouts for drop in layer)
    assert json.loads(json.dumps(found.as_dict()))["score"] == found.score


def test_a_module_is_taken_out_and_the_others_share_its_part(base: Base) -> None:
    bank = base.bank("deep")
    weights = torch.full((1, 3, 3), 1 / 3)
    mix = without(weights, 1, 2, bank)
    assert mix[0, 1].tolist() == pytest.approx([0.5, 0.5, 0]) and torch.equal(mix[0, 0], weights[0, 0])


def test_a_router_whose_prompts_were_tuned_is_measured_as_it_stood_before(base: Base) -> None:
    before = _adapter(base)
    _, dev = review_rows(review_task())
    tuned = replace(before, tensors={"prompts": torch.zeros(3, 4, 32), "head.weight": torch.zeros(2, 32)})
    first, second = (inspect_adapter(adapter, base, dev) for adapter in (before, tuned))
    assert (second.score, second.knockouts) == (first.score, first.knockouts)
    assert second.before_prompts and second.as_dict()["before_prompts"] and not first.before_prompts
    assert not inspect_adapter(tuned, base).before_prompts  # nothing was measured


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("head-only", "method head-only has no router to look into"),
        ("mp2-random-bank", "method mp2-random-bank mixes modules of its own, not a bank's"),
    ],
)
def test_what_has_no_router_of_a_bank_says_so(base: Base, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        adapter_router(_adapter(base, name))


def test_the_command_shows_adapters_and_banks(base: Base, tmp_path: Path) -> None:
    _adapter(base).save(tmp_path / "adapter")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n音乐很好,好\n送得太慢,差\n", "utf-8")
    model = ["--model", str(base.path)]
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "adapter"), *model, "--rows", str(rows)])
    assert shown.exit_code == 0 and "what it loses without a module" in shown.output
    drawn = CliRunner().invoke(
        app,
        ["inspect", str(tmp_path / "adapter"), *model, "--rows", str(rows), "--out", str(tmp_path / "maps")],
    )
    assert drawn.exit_code == 0
    assert {p.name for p in (tmp_path / "maps").glob("*.png")} == {
        "reviews-gates.png",
        "reviews-loss-of-score.png",
    }
    bank = CliRunner().invoke(app, ["inspect", "deep", *model])
    assert bank.output.splitlines()[0].startswith("alpha") and "like beta" in bank.output
    as_json = json.loads(CliRunner().invoke(app, ["inspect", "shallow", *model, "--json"]).output)
    assert [item["task"] for item in as_json] == ["alpha", "beta"]


def test_standard_output_is_json_alone_also_with_pictures(base: Base, tmp_path: Path) -> None:
    _adapter(base).save(tmp_path / "adapter")
    for what in (str(tmp_path / "adapter"), "deep"):
        done = CliRunner().invoke(
            app, ["inspect", what, "--model", str(base.path), "--json", "--out", str(tmp_path / "maps")]
        )
        assert json.loads(done.stdout)[0]["gates"] and ".png" in done.stderr


def test_an_adapter_is_compared_with_its_own_base_alone(base: Base, tmp_path: Path) -> None:
    adapter = _adapter(base)
    for other in ({"base_fingerprint": "0" * 16}, {"bank_fingerprint": "0" * 16}):
        with pytest.raises(CheckpointError, match="belongs to ba"):
            inspect_adapter(replace(adapter, **other), base)
    task = adapter.task.model_copy(update={"name": "my.v1"})
    replace(adapter, task=task, base=str(base.path)).save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "adapter"), "--out", str(tmp_path)])
    assert done.exit_code == 0 and (tmp_path / "my.v1-gates.png").exists()


def test_rows_are_for_adapters(base: Base, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n音乐很好,好\n", "utf-8")
    done = CliRunner().invoke(app, ["inspect", "deep", "--model", str(base.path), "--rows", str(rows)])
    assert isinstance(done.exception, ConfigError) and "deep is a bank" in str(done.exception)
    lost = CliRunner().invoke(app, ["inspect", "deap", "--model", str(base.path), "--rows", str(rows)])
    assert isinstance(lost.exception, CheckpointError) and "did you mean 'deep'" in str(lost.exception)


def test_a_router_over_one_module_is_like_no_other(base: Base, tmp_path: Path) -> None:
    assert all(not item.nearest for item in inspect_bank(base.bank("spot")))
    drawn = CliRunner().invoke(app, ["inspect", "spot", "--model", str(base.path), "--out", str(tmp_path)])
    assert isinstance(drawn.exception, ConfigError) and "over 1 modules" in str(drawn.exception)
