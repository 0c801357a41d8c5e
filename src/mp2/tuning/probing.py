"""Linear probing and SetFit: a classifier on pooled states, and an encoder that pulls labels apart.

Both fit the classifier by L-BFGS on states that are computed once, so a fit costs one forward of the rows.

References:
    SetFit: Tunstall et al., arXiv:2209.11055 (contrastive pairs with cosine loss, then a logistic head).
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from mp2.data.batch import collate
from mp2.model.probe import ProbeHead, pooled
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.tuning.course import Course, Shots, micro_batches
from mp2.tuning.stages import Contrastive, Probe
from mp2.tuning.state import TaskState


def run_probe(course: Course, stage: Probe, index: int) -> None:
    """Fit the classifier with each strength of regularisation; the dev set decides.

    Args: as for :func:`mp2.tuning.gradient.run_gradient`.
    """
    begin = time.monotonic()
    states, labels = features(course.state, course.train)
    for step, strength in enumerate(stage.strengths, start=1):
        loss = fit_probe(probe_of(course.state), states, labels, strength)
        course.score(index, step, time.monotonic() - begin, loss=loss)


def probe_of(state: TaskState) -> ProbeHead:
    """The classifier of a method that has one."""
    assert isinstance(state.head, ProbeHead)
    return state.head


@torch.no_grad()
def features(state: TaskState, shots: Shots) -> tuple[Tensor, Tensor]:
    """Pooled states ``(R, H)`` and labels ``(R,)`` of rows."""
    state.model.eval()
    found, labels = [], []
    for batch in micro_batches(state, shots.rows):
        found.append(pooled(state.model.backbone(batch.ids, batch.mask), batch))
        labels.append(batch.answer)
    return torch.cat(found), torch.cat(labels)


def fit_probe(probe: ProbeHead, states: Tensor, labels: Tensor, strength: float) -> float:
    """Logistic regression by L-BFGS, from zero; returns the mean loss on the rows.

    Args:
        probe: The classifier, changed in place.
        states: ``(R, H)``.
        labels: ``(R,)``.
        strength: Weight of the squared norm divided by H, beside the mean loss of a row; states are scaled to
            unit variance.
    """
    states = states.double()  # bf16 products are too coarse for the line search
    mean, scale = states.mean(dim=0), states.std(dim=0, correction=0).clamp_min(1e-6)
    scaled = (states - mean) / scale
    weight = torch.zeros_like(probe.weight, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros_like(probe.bias, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        penalty = strength * weight.square().sum() / weight.shape[1]
        loss = F.cross_entropy(scaled @ weight.T + bias, labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        probe.weight.copy_(weight / scale)
        probe.bias.copy_(bias - (weight / scale) @ mean)
        return float(F.cross_entropy(states @ probe.weight.double().T + probe.bias.double(), labels))


class _Pairs:
    """Batches of rows in which every label that is present has two rows or more, as far as there are."""

    def __init__(self, labels: Tensor, rows: int, seed: int) -> None:
        self.labels, self.rows = labels, rows
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> list[int]:
        if len(self.labels) <= self.rows:
            return list(range(len(self.labels)))
        kinds = torch.tensor(sorted(set(self.labels.tolist())))
        chosen: list[int] = []
        for kind in kinds[torch.randperm(len(kinds), generator=self.generator)].tolist():
            members = (self.labels == kind).nonzero()[:, 0]
            share = max(2, self.rows // len(kinds))
            order = torch.randperm(len(members), generator=self.generator)[:share]
            chosen += members[order].tolist()
        return chosen[: self.rows]

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None:
        del state  # few-shot tuning leaves no checkpoints


def run_contrastive(course: Course, stage: Contrastive, index: int) -> None:
    """Pull rows of one label together and rows of two apart; each dev score fits the classifier anew.

    Args: as for :func:`mp2.tuning.gradient.run_gradient`.
    """
    begin = time.monotonic()
    state, train = course.state, course.train
    parameters = state.parameters("backbone")
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    labels = torch.tensor([-1 if row.answer is None else row.answer for row in train.rows])
    last_loss = [0.0]

    def loss(chosen: list[int]) -> tuple[Tensor, int, int]:
        state.model.eval()
        pad = state.base.tokenizer.pad_token_id
        batch = collate([train.rows[i] for i in chosen], pad_id=pad).to(state.base.device)
        value = pair_loss(pooled(state.model.backbone(batch.ids, batch.mask), batch), batch.answer)
        last_loss[0] = float(value.detach())
        return value, 1, batch.ids.numel()

    def evaluate() -> dict[str, float]:
        fit_probe(probe_of(state), *features(state, train), stage.strength)
        seconds = time.monotonic() - begin
        return {"score": course.score(index, trainer.state.step, seconds, loss=last_loss[0])}

    trainer = Trainer(
        [Group("backbone", parameters, stage.lr, weight_decay=0.0)],
        _Pairs(labels, stage.rows, course.seed),
        loss,
        LoopConfig(stage.steps, clip=1.0, eval_every=stage.eval_every),
        evaluate=evaluate,
        device=state.base.device,
    )
    try:
        trainer.fit()
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)


def pair_loss(states: Tensor, labels: Tensor) -> Tensor:
    """Squared error of the cosine of every pair to 1 (same label) or 0; both kinds weigh the same.

    Args:
        states: ``(R, H)``.
        labels: ``(R,)``.
    """
    unit = F.normalize(states, dim=-1)
    same = labels[:, None] == labels[None]
    upper = torch.ones_like(same).triu(diagonal=1)
    error = (unit @ unit.T - same.to(unit.dtype)).square()
    parts = [error[upper & kind].mean() for kind in (same, ~same) if bool((upper & kind).any())]
    return torch.stack(parts).mean() if parts else error.sum() * 0
