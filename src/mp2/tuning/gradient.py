"""Gradient tuning of one stage: full-batch steps over the named groups, best moment by the dev set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mp2.data.batch import MRCBatch
from mp2.model.spans import row_losses
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.tuning.course import Course, micro_batches
from mp2.tuning.stages import Gradient


class _Micro:
    """The train set, again and again, in micro-batches that fit the memory."""

    def __init__(self, batches: Sequence[MRCBatch]) -> None:
        self.batches, self.next = batches, 0

    def __next__(self) -> MRCBatch:
        batch = self.batches[self.next]
        self.next = (self.next + 1) % len(self.batches)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.next = int(state["next"])


def run_gradient(course: Course, stage: Gradient, index: int) -> None:
    """Run one gradient stage from the state as it stands; the caller restores the best afterwards.

    Args:
        course: What the stages share; every step sees all train rows.
        stage: What moves.
        index: Number of the stage, for the records.
    """
    state = course.state
    groups = [Group(name, state.parameters(name), lr, weight_decay=0.0) for name, lr in stage.lr.items()]
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    batches = micro_batches(state, course.train.rows)
    begin = time.monotonic()
    seen = deque[torch.Tensor](maxlen=len(batches))  # the losses of the newest step, which sees all rows

    def batch_loss(batch: MRCBatch) -> tuple[torch.Tensor, int, int]:
        state.model.eval()  # no dropout: the released deep code tunes in eval mode, and runs repeat exactly
        losses, known = row_losses(state.logits(batch, state.prompts()), batch, "option")
        seen.append(losses.detach()[known])
        return losses.sum(), batch.known, batch.ids.numel()

    def evaluate() -> dict[str, float]:
        loss = float(torch.cat([*seen]).mean())
        return {"score": course.score(index, trainer.state.step, time.monotonic() - begin, loss=loss)}

    trainer = Trainer(
        groups,
        _Micro(batches),
        batch_loss,
        LoopConfig(stage.steps, accumulate=len(batches), clip=1.0, eval_every=stage.eval_every),
        evaluate=evaluate,
        device=state.base.device,
    )
    try:
        trainer.fit()
    finally:
        for group in groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(False)
