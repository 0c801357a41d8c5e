"""What the stages of a method share while it runs on a task: rows, dev scores, and the best moment so far.

Decides nothing about how a stage finds its next moment (``gradient``, ``probing``, ``blackbox``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch, collate, length_batches, row_tokens, start_cost
from mp2.data.encode import Encoded
from mp2.model.answers import read_answers
from mp2.model.label_offsets import LabelOffsets, label_offsets
from mp2.model.spans import option_log_probs, row_losses
from mp2.tasks.metrics import score
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import TaskSpec
from mp2.tuning.state import TaskState

MICRO_TOKENS = 8192
CPU_TOKENS = 1024  # a processor gains nothing from large batches

Record = Callable[[dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Shots:
    """Labelled rows of one task: rendered and encoded."""

    examples: Sequence[MRCExample]
    rows: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.rows)


def micro_batches(state: TaskState, rows: Sequence[Encoded]) -> list[MRCBatch]:
    """All rows of the task as few batches of similar length, each within the token budget of the device."""
    return [batch for _, batch in _grouped(state, rows)]


def _grouped(state: TaskState, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], MRCBatch]]:
    """The same, each with the indices of its rows."""
    device, pad_id = state.base.device, state.base.tokenizer.pad_token_id
    budget = CPU_TOKENS if torch.device(device).type == "cpu" else MICRO_TOKENS
    lengths = [row_tokens(row) for row in rows]
    for group in length_batches(lengths, tokens=budget, start=start_cost(device)):
        batch = collate([rows[i] for i in group], pad_id=pad_id, offsets=[state.label_offsets])
        yield group, batch.to(device)


@torch.no_grad()
def offsets_of(state: TaskState, train: Shots) -> LabelOffsets:
    """What the labels' scores lack on the train rows, as the state stands."""
    found: list[Tensor] = []
    labels: list[Tensor] = []
    state.model.eval()
    prompts = state.prompts()
    for batch in micro_batches(state, train.rows):
        found += option_log_probs(state.logits(batch, prompts), batch)
        labels.append(batch.answer.cpu())
    return label_offsets(torch.stack(found), torch.cat(labels))


@torch.no_grad()
def dev_measure(state: TaskState, task: TaskSpec, dev: Shots) -> tuple[float, float]:
    """Dev metric in [0, 1] and mean loss of the dev rows with an answer, from one forward of each row."""
    state.model.eval()
    prompts, answers, total, known = state.prompts(), [""] * len(dev), 0.0, 0
    for group, batch in _grouped(state, dev.rows):
        logits = state.logits(batch, prompts)
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


def merit(metric: float, loss: float) -> tuple[float, float]:
    """What moments are compared by: the dev score, at ties the lower dev loss; NaN is the worst."""
    return (metric, -loss) if math.isfinite(loss) else (-1.0, 0.0)


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
        key = merit(score_, loss)
        if self.released:
            key = (key[0], 0.0)
        if key <= self.key and not (self.released and self.stage < 0):
            return False
        self.key = key
        self.keep(state, stage)
        return True

    def keep(self, state: TaskState, stage: int) -> None:
        """Keep the state, whatever was kept before."""
        self.stage, self.snapshot = stage, state.snapshot(state.method.groups)


class Course:
    """One run of a method on a task.

    Args:
        state: Parameters of the task.
        task: The task.
        train: Train rows, which are learned from.
        dev: Dev rows; they decide which moment is kept. Without any it is the newest, unscored.
        seed: Seed of everything random.
        progress: Receives one record per dev score.

    Attributes:
        best: The best moment so far, over all stages.
        curve: All records.
    """

    def __init__(
        self,
        state: TaskState,
        task: TaskSpec,
        train: Shots,
        dev: Shots,
        seed: int,
        progress: Record | None = None,
    ) -> None:
        self.state, self.task, self.train, self.dev, self.seed = state, task, train, dev, seed
        self.best = Best(released=any(getattr(s, "select", "") == "released" for s in state.method.stages))
        self.curve: list[dict[str, float]] = []
        self._progress = progress

    def score(self, stage: int, step: int, seconds: float, **more: float) -> float:
        """Score the state as it stands on the dev rows, and offer it; returns the metric, NaN without any."""
        if not self.dev.rows:
            self.best.keep(self.state, stage)
            return float("nan")
        metric, dev_loss = dev_measure(self.state, self.task, self.dev)
        self.best.offer(self.state, stage, metric, dev_loss)
        self.record(stage, step, metric, dev_loss, seconds, **more)
        return metric

    def record(
        self, stage: int, step: int, metric: float, dev_loss: float, seconds: float, **more: float
    ) -> None:
        """Add a dev score to the curve, without what is no number (JSON has none such), and tell."""
        dev = {"dev": metric, "dev_loss": dev_loss, "seconds": seconds}
        point = {"stage": stage, "step": step, **more, **dev}
        self.curve.append({name: value for name, value in point.items() if math.isfinite(value)})
        if self._progress is not None:
            self._progress(self.curve[-1])
