"""From candidates to losses: ``losses = objective(candidates)``, by forward passes alone.

A candidate is a router ``(L*K,)`` or the intrinsic vector of one layer ``(d,)``; which of the two, the search
says before it asks. All candidates and all rows share as few forwards as the token budget allows, and what
no candidate changes is kept (``mp2.model.population``). Losses are those of gradient tuning, a hinge, or
minus the task's metric. Decides nothing about how candidates are found (``mp2.tuning.asktell``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mp2.data.batch import MRCBatch, collate
from mp2.errors import ConfigError
from mp2.model.answers import read_answers
from mp2.model.population import Population
from mp2.model.spans import option_scores, row_losses
from mp2.tasks.metrics import score
from mp2.tasks.spec import TaskSpec
from mp2.tuning.asktell import Array
from mp2.tuning.course import Shots
from mp2.tuning.stages import SearchLoss
from mp2.tuning.state import TaskState

MARGIN = 2.0  # of the hinge loss, in nats


class Objective:
    """Losses of candidates on labelled rows of one task. Nothing of the state is changed.

    Args:
        state: The task's parameters; it has a bank.
        shots: The rows; every candidate is evaluated on all of them, which is one call.
        task: The task.
        loss: What a candidate is judged by.

    Raises:
        ConfigError: The method has no prompts, or no row has an answer.
    """

    def __init__(
        self,
        state: TaskState,
        shots: Shots,
        task: TaskSpec,
        *,
        loss: SearchLoss = "option",
    ) -> None:
        if state.bank is None:
            raise ConfigError(f"method {state.method.name}: has no prompts to search")
        self.state, self.shots, self.task, self.loss = state, shots, task, loss
        pad, offsets = state.base.tokenizer.pad_token_id, [state.label_offsets]
        batch = collate(shots.rows, pad_id=pad, offsets=offsets).to(state.base.device)
        if not len(batch.gold):
            raise ConfigError(f"task {task.name}: no row has an answer within its text")
        self.batch = batch
        self._repeated = {1: batch}
        self._population = Population(
            state.model,
            batch,
            state.bank.config.length,
            read_tokens(batch, loss),
            state.injection,
        )
        self._dimension = 0
        self._prompts: Callable[[Tensor], Tensor] = self._routed
        self.over_router()

    def over_router(self) -> None:
        """Candidates are router logits of all layers, ``(n, L*K)``."""
        assert self.state.bank is not None
        c = self.state.bank.config
        self._dimension, self._prompts = c.layers * c.modules, self._routed
        self._begin(0)

    def over_layer(self, layer: int) -> None:
        """Candidates are intrinsic vectors ``(n, d)`` of a layer; the others stay as the state has them."""
        self._dimension = self.state.projector.config.intrinsic
        self._prompts = lambda candidates: self.state.project(candidates[:, None], layer)
        self._begin(layer)

    def _begin(self, layer: int) -> None:
        prompts = self.state.prompts()
        assert prompts is not None
        self._population.begin(layer, prompts.detach())

    def _routed(self, candidates: Tensor) -> Tensor:
        assert self.state.bank is not None
        c = self.state.bank.config
        return self.state.route(candidates.view(-1, c.layers, c.modules))

    @torch.inference_mode()
    def __call__(self, candidates: Array) -> Array:
        """Losses of candidates.

        Args:
            candidates: ``(n, D)``.

        Returns:
            ``(n,)`` mean losses over the rows that have an answer.

        Raises:
            ConfigError: The candidates have another dimension than what is searched.
        """
        if candidates.ndim != 2 or candidates.shape[1] != self._dimension:
            raise ConfigError(
                f"candidates: expected (n, {self._dimension}) for the bank of method"
                f" {self.state.method.name}, got {candidates.shape}"
            )
        return self.losses(self._prompts(self.tensor(candidates))).double().cpu().numpy()

    @torch.inference_mode()
    def losses(self, prompts: Tensor) -> Tensor:
        """Losses ``(n,)`` of composed prompts ``(n, J, P, H)`` of the searched layer and those above."""
        logits = self._population(prompts)
        if self.loss == "metric":
            return logits.new_tensor([-self._metric(one) for one in logits])
        return self._mean(logits, self.loss)

    @torch.inference_mode()
    def measure(self, prompts: Tensor) -> list[tuple[float, float]]:
        """Metric and loss of composed prompts ``(n, L, P, H)``; only while the router is searched."""
        logits = self._population(prompts)
        losses = self._mean(logits, "span" if self.loss == "span" else "option").tolist()
        return [(self._metric(one), loss) for one, loss in zip(logits, losses, strict=True)]

    def _mean(self, logits: Tensor, loss: SearchLoss) -> Tensor:
        """Mean over the rows of ``(n, B, T, 2)`` logits, candidate by candidate."""
        count, rows = len(logits), self.batch.rows
        if count not in self._repeated:
            self._repeated[count] = repeat_batch(self.batch, count)
        folded = self._repeated[count]
        flat = logits.flatten(0, 1)
        losses, known = row_losses(flat, folded, "span" if loss == "span" else "option")
        if loss == "hinge" and len(folded.options):
            losses = hinge_losses(flat, folded)
        return losses.view(count, rows).sum(dim=1) / known.view(count, rows).sum(dim=1)

    def _metric(self, logits: Tensor) -> float:
        examples = self.shots.examples
        answers = read_answers(
            logits,
            self.batch,
            self.shots.rows,
            [e.context for e in examples],
            [e.options for e in examples],
            lengths=[self.state.answer_length],
        )
        golds = [example.gold_texts for example in examples]
        return score(self.task.metric or "accuracy", [answer.text for answer in answers], golds)

    def tensor(self, values: Array) -> Tensor:
        """As the model computes, on its device."""
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.state.base.device)


def read_tokens(batch: MRCBatch, loss: SearchLoss) -> Tensor:
    """Tokens ``(B, T)`` whose logits decide the loss and the answer.

    The softmax over a row's tokens divides all its options by the same number, so where only options are
    compared their first and last tokens are enough.
    """
    wanted = batch.mask.clone()
    if loss != "span" and len(batch.options):
        window, first, last = batch.options.unbind(1)
        wanted[window] = False
        wanted[window, first] = True
        wanted[window, last] = True
    return wanted


def repeat_batch(batch: MRCBatch, count: int) -> MRCBatch:
    """The same windows and rows ``count`` times, one copy behind the other, as rows of one batch."""
    windows, rows = len(batch.ids), batch.rows
    # what points at a window moves on by B per copy, what points at a row by R
    step = {"options": windows, "gold": windows, "window_row": rows, "option_row": rows}
    copies: dict[str, Any] = {}
    every = {f.name: getattr(batch, f.name) for f in fields(batch)}
    for name, value in ((name, value) for name, value in every.items() if isinstance(value, Tensor)):
        copy = value.repeat(count, *[1] * (value.dim() - 1))
        if name in step and len(value):
            shift = torch.arange(count, device=value.device).repeat_interleave(len(value)) * step[name]
            if value.dim() == 2:
                copy[:, 0] += shift
            else:
                copy += shift
        copies[name] = copy
    return replace(batch, **copies, rows=rows * count, known=batch.known * count)


def hinge_losses(logits: Tensor, batch: MRCBatch, margin: float = MARGIN) -> Tensor:
    """Per row, by how much its wrong options together miss being ``margin`` below the right one."""
    scores = option_scores(logits, batch)
    right = batch.option_index == batch.answer[batch.option_row]
    gold = scores.new_zeros(batch.rows).index_add(0, batch.option_row, scores * right)
    short = (scores - gold[batch.option_row] + margin).clamp_min(0) * ~right
    return scores.new_zeros(batch.rows).index_add(0, batch.option_row, short) * (batch.answer >= 0)
