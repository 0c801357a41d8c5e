r"""Router: which of the K modular prompts a task uses in each layer, as relaxed Bernoulli gates.

Logits ``(R, L, K)`` become weights ``(R, L, K)`` of the bank's prompts. Paper: section 3.2,
:math:`\hat w = \sigma((w + \log u - \log(1-u)) / \tau)` in training; 1 if w > 0 else 0 afterwards,
combined as :math:`\frac{1}{K}\sum_k \hat w_k p_k`. Released code: :math:`\sigma(w)` afterwards, combined as
:math:`\sum_k \hat w_k p_k / \sum_k \hat w_k`. Both are options here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mp2.errors import ConfigError, nearest

Gate = Literal["soft", "hard"]
Combine = Literal["normalised", "mean"]


@dataclass(frozen=True, slots=True)
class Routing:
    """How router logits become weights.

    Attributes:
        gate: At inference ``soft`` uses sigmoid(w), ``hard`` uses [w > 0].
        combine: ``normalised`` divides by the sum of the gates, ``mean`` by K.
        temperature: tau of the relaxed Bernoulli, unitless, > 0.
    """

    gate: Gate = "soft"
    combine: Combine = "normalised"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, form in (("gate", Gate), ("combine", Combine)):
            if (given := getattr(self, name)) not in get_args(form):
                raise ConfigError(f"routing: no {name} {given!r}; {nearest(given, get_args(form))}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: expected a value > 0, got {self.temperature!r}")


def sample_gates(
    logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Relaxed Bernoulli gates, reparametrised.

    Args:
        logits: Router logits of any shape.
        temperature: tau > 0.
        generator: Source of the noise; PyTorch's global one when None.

    Returns:
        Gates in (0, 1), shape of ``logits``, differentiable in them.
    """
    noise = torch.rand(logits.shape, generator=generator, device=logits.device)
    return torch.sigmoid((logits + torch.logit(noise, eps=1e-6)) / temperature)


def router_weights(
    logits: Tensor, routing: Routing, *, sample: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Weights of the K prompts.

    Args:
        logits: ``(R, L, K)``.
        routing: Gate and combination.
        sample: Draw relaxed Bernoulli gates (pre-training) instead of the inference gates.
        generator: Noise of the draw.

    Returns:
        ``(R, L, K)``. With ``normalised`` each row sums to 1, or is all zero when every hard gate is closed.
        Hard gates have the gradient of soft ones (straight-through estimator, Bengio et al. 2013).
    """
    if sample:
        gates = sample_gates(logits, routing.temperature, generator)
    elif routing.gate == "hard":
        soft = torch.sigmoid(logits)
        # straight through: a step has no slope, so it passes that of the soft gate (0 is added, exactly)
        gates = (logits > 0).to(logits.dtype) + (soft - soft.detach())
    elif routing.combine == "normalised":
        # softmax(log sigmoid(w)) is g / sum(g), defined also when all gates are nearly closed
        return F.softmax(F.logsigmoid(logits), dim=-1)
    else:
        gates = torch.sigmoid(logits)
    if routing.combine == "mean":
        return gates / logits.shape[-1]
    return gates / gates.sum(dim=-1, keepdim=True).clamp_min(1e-6)
