"""The bound as it is calculated here is BoTorch's, and its highest point lies where it should."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mp2.tuning.bayes import FAILURES, GpUcb
from mp2.tuning.stages import Scales

pytestmark = pytest.mark.filterwarnings("ignore")  # BoTorch's own, of what PyTorch is about to drop


@pytest.fixture(scope="module")
def gp() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mp2.tuning import gaussian_process
    return gaussian_process


def data(count: int, axes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    points = torch.rand(count, axes, generator=generator, dtype=torch.float64)
    return points, -(points - 0.3).square().sum(dim=1) + 0.05 * points[:, 0]


@pytest.mark.parametrize("scales", ["one", "each"])
def test_the_bound_is_botorchs(gp: Any, scales: Scales) -> None:
    from botorch.acquisition import UpperConfidenceBound

    points, values = data(30, 6)
    model = gp.process(points, values, {}, scales)
    fitted = gp.fit(model)
    assert gp.length_scales(model).shape == (6,)
    asked = torch.cat([torch.rand(6, 6, dtype=torch.float64), points[:2]])[:, None].requires_grad_(True)
    theirs = UpperConfidenceBound(model, beta=4.0)(asked)
    scale, shift = model.outcome_transform.stdvs.squeeze(), model.outcome_transform.means.squeeze()
    ours = gp.UpperBound(model, kappa=2.0)(asked) * scale + shift
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    slopes = [torch.autograd.grad(bound[:6].sum(), asked)[0][:6] for bound in (ours, theirs)]
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)
    again = gp.UpperBound(gp.process(points, values, fitted, scales), kappa=2.0)(asked) * scale + shift
    torch.testing.assert_close(again, ours)


def test_the_highest_point_is_within_its_bounds(gp: Any) -> None:
    points, values = data(40, 3)
    model = gp.process(points, values, {})
    gp.fit(model)
    torch.manual_seed(0)
    bounds = torch.tensor([[0.4, 0.0, 0.0], [1.0, 1.0, 0.2]], dtype=torch.float64)
    found = gp.highest(model, 0.0, bounds)[0]
    assert found.tolist() == [0.4, float(found[1]), 0.2]
    assert abs(float(found[1]) - 0.3) < 0.1


def test_a_trust_region_closes_in_after_failures() -> None:
    optimiser = GpUcb(12, random=10, seed=1, trust_region=True)
    optimiser.tell(optimiser.ask(), np.linspace(1, 2, 10))
    best = optimiser.best
    assert best is not None
    before = np.abs(optimiser.ask() - best.candidate).max()
    for _ in range(FAILURES):
        optimiser.tell(best.candidate[None] + 0.1, np.array([1.5]))
    assert np.abs(optimiser.ask() - best.candidate).max() < 0.75 * before


@pytest.mark.parametrize(("scales", "fits", "capped"), [("one", 3, True), ("released", 9, False)])
def test_the_released_process_takes_losses_as_they_come_and_is_fitted_before_every_point(
    gp: Any, scales: Scales, fits: int, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, seen = [], []
    fit, process = gp.fit, gp.process
    monkeypatch.setattr(gp, "fit", lambda model: fitted.append(0) or fit(model))
    monkeypatch.setattr(
        gp, "process", lambda points, values, *more: seen.append(values) or process(points, values, *more)
    )
    optimiser = GpUcb(2, random=6, seed=1, scales=scales)
    while optimiser.calls < 15:
        asked = optimiser.ask()
        losses = (asked**2).sum(axis=1)
        losses[0] += 1000.0 * (optimiser.calls == 0)
        optimiser.tell(asked, losses)
    assert len(fitted) == fits and len(seen) == 9
    assert (float(seen[-1].min()) > -1000) == capped
