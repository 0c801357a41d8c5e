"""Learning again from all rows: as long as the dev rows said, and of methods tuned by gradients alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mp2.errors import ConfigError
from mp2.model.checkpoint import Base
from mp2.tuning.methods import get_method
from mp2.tuning.refit import kept_stages, refit
from mp2.tuning.stages import Gradient
from mp2.tuning.state import TaskState
from mp2.tuning.tune import tune
from tests.tuning.test_tune import TASK, rows

METHOD = replace(
    get_method("mp2-deep-gd"),
    stages=(
        Gradient({"head": 0.01}, steps=6, eval_every=2),
        Gradient({"prompts": 0.1, "head": 0.1}, steps=12, eval_every=3),
    ),
)


def _point(stage: int, step: int, dev: float, loss: float = 1.0) -> dict[str, float]:
    return {"stage": stage, "step": step, "dev": dev, "dev_loss": loss}


@pytest.mark.parametrize(
    ("points", "steps"),
    [
        ([_point(0, 2, 0.5), _point(0, 4, 0.4), _point(1, 3, 0.6), _point(1, 6, 0.5)], (2, 3)),
        ([_point(0, 2, 0.3), _point(0, 4, 0.3), _point(1, 3, 0.6), _point(1, 6, 0.6)], (None, 3)),
        ([_point(0, 2, 0.5), _point(0, 4, 0.5, 0.9), _point(1, 3, 0.4), _point(1, 6, 0.5)], (4, None)),
        ([_point(0, 2, 0.3), _point(1, 3, 0.4)], (None, None)),
    ],
)
def test_stages_last_as_long_as_what_was_kept_of_them(
    points: list[dict[str, float]], steps: tuple[int | None, ...]
) -> None:
    stages = kept_stages(METHOD, [_point(-1, 0, 0.4), *points])
    wanted = zip(METHOD.stages, steps, strict=True)
    assert stages == tuple(replace(stage, steps=n, eval_every=0) for stage, n in wanted if n)  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["mp2-deep-gd", "model-tuning"])
def test_on_the_same_rows_it_is_the_moment_that_was_kept(base: Base, name: str) -> None:
    method = METHOD if name == METHOD.name else get_method(name)
    train, dev = rows(8), rows(6)  # dev rows like those learned from, so that every stage brings something
    first = tune(base, TASK, train, dev, method, seed=3)
    stages = kept_stages(method, first.facts["curve"])
    assert len(stages) == len(method.stages)
    again = tune(base, TASK, train, None, replace(method, stages=stages), seed=3)
    assert again.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in first.tensors)
    both = refit(base, first, train, dev, method, seed=3)
    assert both.tensors.keys() == first.tensors.keys()
    assert not all(torch.equal(both.tensors[name], first.tensors[name]) for name in first.tensors)
    steps = sum(stage.steps for stage in stages)
    changed = {"refit": 14, "refit_steps": steps, "seconds": both.facts["seconds"]}
    assert both.facts == first.facts | changed


def test_the_router_that_is_told_is_that_of_the_adapter(base: Base) -> None:
    method = replace(METHOD, stages=(Gradient({"router": 0.5}, steps=4, eval_every=2),))
    first = tune(base, TASK, rows(8), rows(6), method, seed=3)
    both = refit(base, first, rows(8), rows(6), method, seed=3)
    assert both.facts["refit"] == 14 and both.facts["router"] != base.bank("deep").router.tolist()
    torch.testing.assert_close(torch.tensor(both.facts["router"]), both.tensors["router"], atol=1e-4, rtol=0)


def test_where_the_start_was_best_nothing_is_learned_again(base: Base) -> None:
    untouched = tune(base, TASK, rows(4), rows(4, start=4), get_method("zero-shot"))
    assert refit(base, untouched, rows(4), rows(4, start=4), get_method("zero-shot")) is untouched
    calibrated = tune(base, TASK, rows(4), rows(4, start=4), get_method("zero-shot"), calibrate=True)
    both = refit(base, calibrated, rows(4), rows(4, start=4), get_method("zero-shot"))
    assert both.facts["refit"] == 8 and both.label_offsets != calibrated.label_offsets


@pytest.mark.parametrize("name", ["mp2-deep-bb-router", "mp2-deep-transfer", "linear-probing", "setfit"])
def test_what_chooses_more_than_a_moment_is_refused(base: Base, name: str) -> None:
    adapter = tune(base, TASK, rows(4), rows(4, start=4), get_method("zero-shot"))
    with pytest.raises(ConfigError, match=f"method {name}: it cannot learn again from its dev rows"):
        refit(base, adapter, rows(4), rows(4, start=4), get_method(name))
    with pytest.raises(ConfigError, match=f"method {name}: it chooses by dev rows, and there are none"):
        tune(base, TASK, rows(4), None, get_method(name))


def test_a_random_bank_is_the_same_one_whatever_was_kept_of_its_stages(base: Base) -> None:
    method = get_method("mp2-random-bank")
    whole, part = (TaskState(base, replace(method, stages=s), seed=3) for s in (method.stages, METHOD.stages))
    assert whole.bank is not None and part.bank is not None and whole.bank.config.modules == 8
    assert "router" not in part.method.groups and torch.equal(whole.bank.prompts, part.bank.prompts)
