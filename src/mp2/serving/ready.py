"""Adapters made ready to be asked, and the prompts of many of them in one step.

A task of router weights stays what it is, L*K numbers: the prompts of all tasks of a batch are mixed at once,
from a bank whose prompts were projected to keys and values before. So such a task takes some kilobytes, and
nothing is composed when it is first asked for. A task with prompts of its own keeps these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp2.errors import CheckpointError, Mp2Error
from mp2.model.backbone import Backbone
from mp2.model.bank import Injection, PromptBank, slots_of
from mp2.model.checkpoint import Base
from mp2.model.mrc import Heads, SpanHead
from mp2.model.router import router_weights
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter, Composed, compose, load_adapter

OBJECTS = 8 << 10  # bytes of a task beside its tensors: measured over 2,000 tasks


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An adapter in memory.

    Attributes:
        task: The task.
        composed: Its head, encoder and injection, and its prompts where they are its own.
        weights: ``(L, K)`` weights of the bank's prompts, or None where nothing is mixed.
        bank: Name of that bank.
        shape: Shape ``(L or 1, P, H)`` of the prompts, or None without any.
        bytes: Memory that only this adapter needs.
    """

    task: TaskSpec
    composed: Composed
    weights: Tensor | None = None
    bank: str = ""
    shape: tuple[int, ...] | None = None
    bytes: int = 0

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for tasks whose rows one forward can answer: classifiers can't be mixed, span heads can."""
        head = None if isinstance(self.composed.head, SpanHead) else id(self.composed.head)
        return id(self.composed.backbone), self.composed.injection, self.shape, head

    @property
    def reserve(self) -> int:
        """Positions that the prompt takes from the text."""
        return 0 if self.shape is None else slots_of(self.composed.injection, self.shape[1])


class Mixer:
    """A bank of which prompts of many tasks are mixed in one product.

    What a layer makes of a prompt is linear in it, so for ``prefix`` the K prompts are projected to keys and
    values first, once, and these are mixed.

    Args:
        bank: The bank.
        backbone: Its encoder.
        injection: How prompts enter a layer.
    """

    def __init__(self, bank: PromptBank, backbone: Backbone, injection: Injection) -> None:
        prompts = bank.materialised().prompts.transpose(0, 1)  # (K, L, P, H)
        constant = torch.zeros_like(prompts[:1])
        if _projected(backbone, injection, bank.config.layers):
            constant = backbone.prefix_states(constant)  # the biases of the two projections
            prompts = backbone.prefix_states(prompts) - constant
        self.shape = prompts.shape[2:]
        self.parts = prompts.flatten(2).transpose(0, 1).contiguous()  # (L, K, all of a prompt's numbers)
        self.constant = constant.flatten(2).transpose(0, 1).contiguous()  # (L, 1, the same)

    def __call__(self, weights: Tensor) -> Tensor:
        """Prompts, or keys and values, of tasks: weights ``(N, L, K)`` to ``(N, L, ...)``."""
        mixed = torch.baddbmm(self.constant, weights.transpose(0, 1), self.parts)
        return mixed.transpose(0, 1).reshape(len(weights), -1, *self.shape)


@torch.no_grad()
def prompts_of(tasks: Sequence[Ready], mixers: dict[str, Mixer], base: Base) -> Tensor | None:
    """Prompts of N tasks of one kind, ``(N, L, ...)`` as :meth:`MRCModel.forward` takes them; None without.

    Args:
        tasks: The tasks.
        mixers: Mixer of each bank; what is missing is made and kept there.
        base: The base of the banks.
    """
    if tasks[0].shape is None:
        return None
    banks: dict[str, list[int]] = {}
    for place, ready in enumerate(tasks):
        banks.setdefault(ready.bank, []).append(place)
    backbone, injection = tasks[0].composed.backbone, tasks[0].composed.injection
    parts = []
    for bank, places in banks.items():
        if bank:
            if bank not in mixers:
                mixers[bank] = Mixer(base.bank(bank).bank, base.backbone, injection)
            parts.append(mixers[bank](torch.stack([_of(tasks[place].weights) for place in places])))
            continue
        own = torch.stack([_of(tasks[place].composed.prompts) for place in places])
        projected = _projected(backbone, injection, own.shape[1])
        parts.append(backbone.prefix_states(own) if projected else own)
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for places in banks.values() for place in places], device=base.device)
    return torch.cat(parts)[order.argsort()]


def heads_of(tasks: Sequence[Ready]) -> Heads | None:
    """Span heads of several tasks, or None where they share a head."""
    heads = [ready.composed.head for ready in tasks]
    if len({id(head) for head in heads}) == 1:
        return None
    return torch.stack([head.weight for head in heads]), torch.stack([head.bias for head in heads])


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        CheckpointError: Whatever is wrong with it, in words that name no path.
    """
    try:
        return load_adapter(folder)
    except Mp2Error as error:
        raise CheckpointError(f"task {name!r}: {error}".replace(f"{folder}", name)) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"task {name!r}: not an adapter this version can read: {error}") from error


def make_ready(name: str, adapter: Adapter, base: Base) -> Ready:
    """Make an adapter ready, and check what a forward would trip over in the middle of other tasks' rows.

    Raises:
        CheckpointError: It is damaged, or of another base.
    """
    for key, value in adapter.tensors.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise CheckpointError(f"task {name!r}: damaged: {key} holds values that are no finite numbers")
    try:
        ready = _route(adapter, base) or _whole(adapter, base)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"task {name!r}: not an adapter this version can read: {error}") from error
    composed, backbone = ready.composed, ready.composed.backbone
    shape, rows = ready.shape, 2 if isinstance(composed.head, SpanHead) else len(adapter.task.labels)
    if shape is not None and (
        len(shape) != 3 or shape[0] not in (1, backbone.depth) or shape[2] != backbone.hidden_size
    ):
        expected = f"({backbone.depth} or 1, P, {backbone.hidden_size})"
        raise CheckpointError(f"task {name!r}: prompts: expected {expected}, got {shape}")
    if tuple(composed.head.weight.shape) != (rows, backbone.hidden_size):
        got = tuple(composed.head.weight.shape)
        raise CheckpointError(f"task {name!r}: head: expected ({rows}, {backbone.hidden_size}), got {got}")
    return replace(ready, bytes=_bytes(ready, base))


def _route(adapter: Adapter, base: Base) -> Ready | None:
    """A task that mixes the bank's prompts in the base's own encoder; None when it is not of this form."""
    tensors = dict(adapter.tensors)
    logits = tensors.pop("router", None)
    if adapter.bank is None or logits is None:
        return None
    composed = compose(replace(adapter, tensors=tensors), base)
    bank = base.bank(adapter.bank)
    c = bank.bank.config
    if composed.backbone is not base.backbone or adapter.injection != c.injection:
        return None
    if tuple(logits.shape) != (c.layers, c.modules):
        raise TypeError(f"router: expected ({c.layers}, {c.modules}), got {tuple(logits.shape)}")
    weights = router_weights(logits.to(base.device)[None], bank.routing)[0]
    return Ready(
        adapter.task,
        replace(composed, prompts=None),
        weights,
        adapter.bank,
        (c.layers, c.length, c.hidden),
    )


def _whole(adapter: Adapter, base: Base) -> Ready:
    composed = compose(adapter, base)
    prompts = composed.prompts
    return Ready(adapter.task, composed, shape=None if prompts is None else tuple(prompts.shape))


def _bytes(ready: Ready, base: Base) -> int:
    """Memory that only this adapter needs."""
    composed = ready.composed
    known = (composed.prompts, composed.labels, ready.weights)
    tensors = [tensor for tensor in known if tensor is not None]
    tensors += composed.head.parameters()
    if composed.backbone is not base.backbone:
        tensors += composed.backbone.parameters()
    return OBJECTS + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _projected(backbone: Backbone, injection: Injection, layers: int) -> bool:
    """Whether prompts are projected ahead of the forward; a sharded layer has weights only inside one."""
    return injection == "prefix" and layers == backbone.depth and not backbone.sharded


def _of(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
