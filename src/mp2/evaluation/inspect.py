"""What a router says: which modules a task uses, which known tasks it is like, what each module is worth.

Works on banks and on adapters. Draws nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mp2.errors import CheckpointError, ConfigError
from mp2.model.checkpoint import Base, TrainedBank
from mp2.model.router import router_weights
from mp2.tasks.metrics import score
from mp2.tasks.render import MRCExample
from mp2.tuning.adapter import Adapter, check_base, compose
from mp2.tuning.methods import METHODS
from mp2.tuning.tune import encode_shots

OPEN = 0.5  # a module is said to be used when its gate is more open than shut


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of one task's router.

    Attributes:
        task: The task.
        gates: ``[L][K]`` gates in [0, 1].
        used: ``(layer, module)`` of open gates, 0-based.
        nearest: Upstream tasks and the likeness of their gates, -1 to 1, most alike first.
        knockouts: ``[L][K]`` what the score loses without a module; empty when it was not measured.
        score: Score with all modules, when knock-outs were measured.
        before_prompts: Whether score and knock-outs are of the router on the bank's own prompts, although
            others were tuned after it.
    """

    task: str
    gates: list[list[float]]
    used: list[tuple[int, int]]
    nearest: list[tuple[str, float]]
    knockouts: list[list[float]] = field(default_factory=list)
    score: float | None = None
    before_prompts: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form; numbers rounded."""
        return {
            "task": self.task,
            "gates": [[round(gate, 4) for gate in layer] for layer in self.gates],
            "used": [list(place) for place in self.used],
            "nearest": [[name, round(likeness, 4)] for name, likeness in self.nearest],
            "score": self.score,
            "before_prompts": self.before_prompts,
            "knockouts": [[round(drop, 4) for drop in layer] for layer in self.knockouts],
        }


def likeness(router: Tensor, others: Tensor) -> Tensor:
    """Cosine between gates, after the mean over the upstream tasks is taken away.

    Args:
        router: ``(L, K)`` logits.
        others: ``(N, L, K)`` logits of the upstream tasks.

    Returns:
        ``(N,)``.
    """
    gates = others.sigmoid().flatten(1)
    centre = gates.mean(dim=0)
    own = router.sigmoid().flatten() - centre
    return F.cosine_similarity(gates - centre, own[None], dim=1)


def inspect_router(task: str, router: Tensor, bank: TrainedBank, *, top: int = 5) -> Inspection:
    """Gates, used modules and nearest upstream tasks of a router.

    Args:
        task: Name of its task; itself is not among its neighbours.
        router: ``(L, K)`` logits.
        bank: The bank it belongs to.
        top: Neighbours to name.

    Raises:
        CheckpointError: It belongs to a bank of another shape.
    """
    shape = tuple(bank.router.shape[1:])
    if tuple(router.shape) != shape:
        raise CheckpointError(
            f"router of {task}: expected {shape} as bank {bank.name!r}, got {tuple(router.shape)}"
        )
    gates = router.sigmoid()
    alike = likeness(router, bank.router.to(router)).tolist()
    ranked = sorted(zip(bank.tasks, alike, strict=True), key=lambda item: -item[1])
    used = [(layer, module) for layer, module in (gates > OPEN).nonzero().tolist()]
    decides = shape[1] > 1  # one module is all there is: any two tasks are alike, or opposite
    near = [(name, value) for name, value in ranked if decides and name != task][:top]
    return Inspection(task, gates.tolist(), used, near)


def inspect_bank(bank: TrainedBank) -> list[Inspection]:
    """Every upstream task of a bank, with its three nearest."""
    return [inspect_router(name, bank.router[i].cpu(), bank, top=3) for i, name in enumerate(bank.tasks)]


def adapter_router(adapter: Adapter) -> Tensor:
    """Router ``(L, K)`` of an adapter, also where its prompts were tuned afterwards.

    Raises:
        ConfigError: Its method has no router, or none over the modules of a bank.
    """
    if "router" in adapter.tensors:
        return adapter.tensors["router"].cpu()
    if adapter.facts.get("router"):
        return torch.tensor(adapter.facts["router"])
    method = METHODS.get(adapter.method)
    why = "has no router to look into"
    if method is not None and "router" in method.groups:
        why = "mixes modules of its own, not a bank's: the adapter holds their mixture alone, and no router"
    raise ConfigError(f"adapter of task {adapter.task.name!r}: method {adapter.method} {why}")


def inspect_adapter(adapter: Adapter, base: Base, examples: Sequence[MRCExample] = ()) -> Inspection:
    """An adapter's router, and with labelled rows what each module is worth.

    A module can be taken out of a mixture only, so where prompts were tuned after the router, what is
    measured is the router as it stood before, on the bank's own prompts and head.

    Args:
        adapter: The adapter.
        base: Its base.
        examples: Labelled rows of its task; empty measures no knock-outs.

    Raises:
        ConfigError: It has no router.
        CheckpointError: It belongs to another base or bank.
    """
    router = adapter_router(adapter)
    check_base(adapter, base)
    assert adapter.bank is not None
    found = inspect_router(adapter.task.name, router, base.bank(adapter.bank))
    if not examples:
        return found
    whole, drops = knockouts(replace(adapter, tensors={"router": router}), base, examples)
    return replace(found, knockouts=drops, score=whole, before_prompts="router" not in adapter.tensors)


@torch.no_grad()
def knockouts(
    adapter: Adapter, base: Base, examples: Sequence[MRCExample]
) -> tuple[float, list[list[float]]]:
    """Score with all modules, and what it loses when one module of one layer is taken out.

    Args:
        adapter: A router-only adapter.
        base: Its base.
        examples: Labelled rows.
    """
    assert adapter.bank is not None
    bank = base.bank(adapter.bank)
    composed = compose(adapter, base)
    weights = router_weights(adapter.tensors["router"].to(base.device)[None], bank.routing)
    rows = encode_shots(base, examples, composed.reserve).rows

    def measured(mix: Tensor) -> float:
        answers = replace(composed, prompts=bank.bank.compose(mix)[0]).answers(examples, rows)
        golds = [example.gold_texts for example in examples]
        return score(adapter.task.metric or "accuracy", [answer.text for answer in answers], golds)

    whole = measured(weights)
    _, layers, modules = weights.shape
    drops = [[whole - measured(without(weights, i, k, bank)) for k in range(modules)] for i in range(layers)]
    return whole, drops


def without(weights: Tensor, layer: int, module: int, bank: TrainedBank) -> Tensor:
    """Weights ``(1, L, K)`` with one module taken out; the others share its part where weights sum to 1."""
    mix = weights.clone()
    mix[:, layer, module] = 0
    if bank.routing.combine == "normalised":
        mix[:, layer] /= mix[:, layer].sum(dim=-1, keepdim=True).clamp_min(1e-6)
    return mix
