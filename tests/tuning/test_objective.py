"""Losses of candidates equal those of the plain forward, one candidate at a time, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mp2.errors import ConfigError
from mp2.model.checkpoint import Base
from mp2.model.router import router_weights
from mp2.model.spans import row_losses
from mp2.tuning.course import dev_measure
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective, hinge_losses, repeat_batch
from mp2.tuning.stages import SearchLoss
from mp2.tuning.state import TaskState
from tests.tuning.shots import prepared, review_rows, review_task, span_rows, span_task

ROWS = {"deep": "mp2-deep-bb", "shallow": "mp2-shallow-bb", "bbt": "bbt", "bbtv2": "bbtv2"}


@torch.no_grad()
def _plain(objective: Objective, prompts: Tensor, kind: SearchLoss) -> float:
    """The whole model on the whole batch for one candidate."""
    state, batch = objective.state, objective.batch
    logits = state.model(batch, prompts, state.injection)
    if kind == "hinge":
        return float(hinge_losses(logits, batch).mean())
    losses, known = row_losses(logits, batch, "span" if kind == "span" else "option")
    return float(losses.sum() / known.sum())


@pytest.mark.parametrize("kind", ["option", "span", "hinge"])
@pytest.mark.parametrize("method", ["deep", "shallow"])
@torch.no_grad()
def test_router_candidates(base: Base, method: str, kind: SearchLoss) -> None:
    task = review_task()
    state, shots = prepared(base, METHODS[ROWS[method]], task, review_rows(task)[0])
    objective = Objective(state, shots, task, loss=kind)
    assert state.bank is not None and state.router is not None
    candidates = np.random.default_rng(0).normal(size=(5, state.router.numel()))
    found = objective(candidates)
    for candidate, loss in zip(candidates, found, strict=True):
        logits = torch.from_numpy(candidate).float().view_as(state.router)
        expected = _plain(objective, state.bank.compose(router_weights(logits, state.routing)), kind)
        assert loss == pytest.approx(expected, abs=1e-5)
    assert np.ptp(found) > 1e-2


@pytest.mark.parametrize("kind", ["option", "span"])
@pytest.mark.parametrize("method", list(ROWS))
@pytest.mark.parametrize("family", ["options", "spans"])
@torch.no_grad()
def test_candidates_of_each_layer(base: Base, method: str, family: str, kind: SearchLoss) -> None:
    task = review_task() if family == "options" else span_task()
    examples = review_rows(task)[0] if family == "options" else span_rows(task)
    state, shots = prepared(base, METHODS[ROWS[method]], task, examples)
    objective = Objective(state, shots, task, loss=kind)
    state.fuse()
    assert state.z is not None
    random = np.random.default_rng(1)
    for layer in range(state.z.shape[1]):
        objective.over_layer(layer)
        candidates = random.normal(size=(3, state.z.shape[2]))
        found = objective(candidates)
        for candidate, loss in zip(candidates, found, strict=True):
            z = state.z.detach().clone()
            z[0, layer] = torch.from_numpy(candidate)
            assert loss == pytest.approx(_plain(objective, state.projector.project(z), kind), abs=1e-5)
        # the layer moves on, and those above must see it
        state.z[0, layer] = torch.from_numpy(candidates[0]).float()


@torch.no_grad()
def test_the_metric_as_loss_and_the_dev_score_are_those_of_the_whole_model(base: Base) -> None:
    for task, examples in (
        (review_task(), review_rows(review_task())[0]),
        (span_task(), span_rows(span_task())),
    ):
        state, shots = prepared(base, METHODS["mp2-deep-bb"], task, examples)
        state.label_offsets = (0.2, -0.3) if task.labels else ()
        assert state.router is not None
        objective = Objective(state, shots, task, loss="metric")
        candidates = np.random.default_rng(2).normal(size=(4, state.router.numel())) * 3
        routers = torch.from_numpy(candidates).float().view(-1, *state.router.shape[1:])
        found, measured = objective(candidates), objective.measure(state.route(routers))
        for router, loss, (metric, mean) in zip(routers, found, measured, strict=True):
            state.router.copy_(router[None])
            expected = dev_measure(state, task, shots)
            assert (metric, mean) == (expected[0], pytest.approx(expected[1], abs=1e-5))
            assert loss == pytest.approx(-metric)


def test_the_fused_vector_gives_the_prompts_of_the_router(base: Base) -> None:
    for name in ("mp2-deep-bb", "mp2-shallow-bb"):
        state = TaskState(base, METHODS[name], seed=1)
        before = state.prompts()
        snapshot = state.snapshot(("router", "z"))
        state.fuse()
        torch.testing.assert_close(state.prompts(), before, atol=1e-4, rtol=1e-4)
        assert state.z is not None
        state.z.data += 1
        state.restore(snapshot)
        assert state.z is None
        torch.testing.assert_close(state.prompts(), before)


def test_a_repeated_batch_points_at_its_own_copies(base: Base) -> None:
    task = review_task()
    state, shots = prepared(base, METHODS["mp2-deep-bb"], task, review_rows(task)[0])
    state.label_offsets = (0.2, -0.3)
    batch = Objective(state, shots, task).batch
    logits = torch.randn(3, *batch.ids.shape, 2, generator=torch.Generator().manual_seed(0))
    together, _ = row_losses(logits.flatten(0, 1), repeat_batch(batch, 3), "option")
    for copy, one in zip(together.view(3, -1), logits, strict=True):
        torch.testing.assert_close(copy, row_losses(one, batch, "option")[0])


def test_bad_candidates_and_banks_are_refused(base: Base) -> None:
    task = review_task()
    state, shots = prepared(base, METHODS["mp2-deep-bb"], task, review_rows(task)[0])
    with pytest.raises(
        ConfigError, match=r"expected \(n, 9\) for the bank of method mp2-deep-bb, got \(2, 8\)"
    ):
        Objective(state, shots, task)(np.zeros((2, 8)))
    with pytest.raises(ConfigError, match="has no prompts to search"):
        Objective(TaskState(base, METHODS["head-only"], 1), shots, task)
    dense = TaskState(base, replace(METHODS["mp2-random-bank"], name="dense"), 1)
    with pytest.raises(ConfigError, match=r"no intrinsic vectors z and projection A.*-router"):
        dense.fuse()
