"""Gradient tuning of one stage: full-batch steps over the named groups, best moment by the dev set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mp2.data.batch import MRCBatch, collate, length_batches, row_tokens, start_cost
from mp2.data.encode import Encoded
from mp2.model.answers import read_answers
from mp2.model.spans import row_losses
from mp2.tasks.metrics import score
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import TaskSpec
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.tuning.stages import Gradient
from mp2.tuning.state import TaskState

MICRO_TOKENS = 8192
CPU_TOKENS = 1024  # a processor gains nothing from large batches


@dataclass(frozen=True, slots=True)
class Shots:
    """Labelled rows of one task: rendered and encoded."""

    examples: Sequence[MRCExample]
    rows: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.rows)


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


def micro_batches(
    rows: Sequence[Encoded], pad_id: int, device: str, tokens: int | None = None
) -> list[MRCBatch]:
    """All rows as few batches of similar length, each within the token budget (by the device when None)."""
    return [batch for _, batch in _grouped(rows, pad_id, device, tokens)]


def _grouped(
    rows: Sequence[Encoded], pad_id: int, device: str, tokens: int | None = None
) -> Iterator[tuple[list[int], MRCBatch]]:
    """The same, each with the indices of its rows."""
    budget = tokens or (CPU_TOKENS if torch.device(device).type == "cpu" else MICRO_TOKENS)
    lengths = [row_tokens(row) for row in rows]
    for group in length_batches(lengths, tokens=budget, start=start_cost(device)):
        yield group, collate([rows[i] for i in group], pad_id=pad_id).to(device)


@torch.no_grad()
def dev_measure(state: TaskState, task: TaskSpec, dev: Shots) -> tuple[float, float]:
    """Dev metric in [0, 1] and mean loss of the dev rows with an answer, from one forward of each row."""
    state.model.eval()
    prompts, answers, total, known = state.prompts(), [""] * len(dev), 0.0, 0
    for group, batch in _grouped(dev.rows, state.base.tokenizer.pad_token_id, state.base.device):
        logits = state.model(batch, prompts, state.injection, options_only=True)
        losses, asked = row_losses(logits, batch, "option")
        total, known = total + float(losses.sum()), known + int(asked.sum())
        examples = [dev.examples[i] for i in group]
        found = read_answers(
            logits,
            batch,
            [dev.rows[i] for i in group],
            [e.context for e in examples],
            [e.options for e in examples],
            lengths=[state.answer_length],
        )
        for i, answer in zip(group, found, strict=True):
            answers[i] = answer.text
    metric = score(task.metric or "accuracy", answers, [example.gold_texts for example in dev.examples])
    return metric, total / max(1, known)


class Best:
    """The best moment so far over all stages: higher dev score, at ties the lower dev loss.

    Args:
        released: The released black-box rule: at ties the first, and any moment beats the untuned start.
    """

    def __init__(self, *, released: bool = False) -> None:
        self.released = released
        self.key = (-1.0, 0.0)
        self.snapshot: dict[str, torch.Tensor] = {}
        self.stage = -1

    def offer(self, state: TaskState, stage: int, score_: float, loss: float) -> bool:
        """Keep the state if it is better; says whether it was."""
        key = (score_, 0.0 if self.released else -loss)
        if key <= self.key and not (self.released and self.stage < 0):
            return False
        self.key, self.stage, self.snapshot = key, stage, state.snapshot(state.method.groups)
        return True


def run_gradient(
    state: TaskState,
    stage: Gradient,
    index: int,
    task: TaskSpec,
    train: Shots,
    dev: Shots,
    best: Best,
    record: Callable[[dict[str, float]], None],
) -> None:
    """Run one gradient stage from the state as it stands; the caller restores the best afterwards.

    Args:
        state: Parameters of the task.
        stage: What moves.
        index: Number of the stage, for the records.
        task: The task.
        train: Train rows; every step sees all of them.
        dev: Dev rows; decide which moment is kept.
        best: The best so far, updated.
        record: Receives one record per dev score.
    """
    groups = [Group(name, state.parameters(name), lr, weight_decay=0.0) for name, lr in stage.lr.items()]
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)
    batches = micro_batches(train.rows, state.base.tokenizer.pad_token_id, state.base.device)
    begin = time.monotonic()
    seen = deque[torch.Tensor](maxlen=len(batches))  # the losses of the newest step, which sees all rows

    def batch_loss(batch: MRCBatch) -> tuple[torch.Tensor, int, int]:
        state.model.eval()  # no dropout: the released deep code tunes in eval mode, and runs repeat exactly
        logits = state.model(batch, state.prompts(), state.injection, options_only=True)
        losses, known = row_losses(logits, batch, "option")
        seen.append(losses.detach()[known])
        return losses.sum(), batch.known, batch.ids.numel()

    def evaluate() -> dict[str, float]:
        metric, dev_loss = dev_measure(state, task, dev)
        best.offer(state, index, metric, dev_loss)
        record(
            {
                "stage": index,
                "step": trainer.state.step,
                "loss": float(torch.cat([*seen]).mean()),
                "dev": metric,
                "dev_loss": dev_loss,
                "seconds": time.monotonic() - begin,
            }
        )
        return {"score": metric}

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
