"""Router gates against torch.distributions, and both combinations."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import RelaxedBernoulli

from mp2.errors import ConfigError
from mp2.model.router import Routing, router_weights, sample_gates


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_relaxed_bernoulli_means_match_torch(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 1.5])
    draws = 200_000
    ours = sample_gates(logits.expand(draws, 3), temperature)
    theirs = RelaxedBernoulli(torch.tensor(temperature), logits=logits).sample((draws,))
    error = (ours.var(0) / draws + theirs.var(0) / draws).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=3e-3, rtol=0)


def test_the_same_generator_gives_the_same_gates() -> None:
    logits = torch.randn(2, 3, 4)
    first, second = (sample_gates(logits, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_soft_normalised_is_the_released_formula() -> None:
    logits = torch.randn(2, 3, 4)
    gates = torch.sigmoid(logits)
    torch.testing.assert_close(router_weights(logits, Routing()), gates / gates.sum(-1, keepdim=True))


def test_hard_mean_is_the_papers_formula() -> None:
    logits = torch.tensor([[[1.0, -1.0, 2.0, -3.0]]])
    weights = router_weights(logits, Routing("hard", "mean"))
    assert weights.tolist() == [[[0.25, 0.0, 0.25, 0.0]]]


@pytest.mark.parametrize("gate", ["soft", "hard"])
@pytest.mark.parametrize("combine", ["mean", "normalised"])
@pytest.mark.parametrize("sample", [False, True])
def test_weights_are_defined_when_all_gates_are_closed(gate: str, combine: str, sample: bool) -> None:
    logits = torch.full((1, 2, 4), -1e4, requires_grad=True)
    weights = router_weights(logits, Routing(gate, combine), sample=sample)  # type: ignore[arg-type]
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    if weights.requires_grad:
        weights.sum().backward()
        assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        Routing(temperature=temperature)


@pytest.mark.parametrize("combine", ["normalised", "mean"])
def test_hard_gates_pass_the_gradient_of_soft_ones(combine: str) -> None:
    logits = torch.tensor([[[0.7, -0.4, 0.1, -2.0]]], requires_grad=True)
    routing = Routing("hard", combine)  # type: ignore[arg-type]
    weights = router_weights(logits, routing)
    assert torch.equal(weights, router_weights(logits.detach(), routing))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (found,) = torch.autograd.grad((weights * values).sum(), logits)
    slope = torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    by_gate = values / 4 if combine == "mean" else (values - (1 + 3) / 2) / 2  # two gates are open
    assert torch.allclose(found, slope * by_gate)
