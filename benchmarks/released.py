"""The released way, written anew for comparison: what the authors' published program does per step.

Fifty placeholder tokens after [CLS] to which a prompt is added before every layer; all K prompts of all
layers multiplied out from z and A in every forward; batches in random order, padded to their longest row,
without an attention mask of their own, so padding is attended to; plain attention; the output of every layer
kept; dropout in pre-training; two AdamW optimisers, one of them over all of A; all groups move in both stages
of few-shot tuning. Candidates of a black-box search run one at a time. Nothing is made slower here than it is
there; its scores, which decode texts token by token, are left out. On a card it multiplies in full fp32
unless the caller says otherwise (``timing.tf32``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertModel
from workload import option_spans

from mp2.data.encode import Encoded

SLOTS, MODULES, INTRINSIC, ROWS = 50, 8, 300, 32
FIRST_SLOT = 10  # id of the first placeholder


class ReleasedModel(nn.Module):
    """Encoder, additive prompts on fifty slots, and a span head.

    Args:
        encoder: A BERT encoder of its own; its attention becomes the plain one.
        tasks: Rows of the router.
        multiplied: Whether prompts were multiplied out before (few-shot tuning) and move freely.
    """

    def __init__(self, encoder: BertModel, tasks: int, *, multiplied: bool = False) -> None:
        super().__init__()
        encoder.set_attn_implementation("eager")
        self.encoder = encoder.requires_grad_(False)
        layers, hidden = encoder.config.num_hidden_layers, encoder.config.hidden_size
        wide = SLOTS * hidden
        self.router = nn.Parameter(torch.empty(tasks, layers, MODULES).uniform_(-1e-3, 1e-3))
        self.multiplied = multiplied
        if multiplied:
            self.prompt = nn.Parameter(torch.randn(layers, MODULES, wide) * 1e-2)
        else:
            self.z = nn.Parameter(torch.empty(layers, MODULES, INTRINSIC).uniform_(-1e-3, 1e-3))
            self.A = nn.Parameter(torch.empty(layers, INTRINSIC, wide).uniform_(-1, 1) * wide**-0.5)
        self.head = nn.Linear(hidden, 2)

    def prompts(self, task: int) -> Tensor:
        """``(L, slots, H)`` prompts of a task; every one of the K is computed, then mixed."""
        every = self.prompt if self.multiplied else torch.bmm(self.z, self.A)
        gates = self.router[task]
        if self.training:
            noise = torch.rand_like(gates).clamp(1e-6, 1 - 1e-6)
            gates = gates + noise.log() - (1 - noise).log()
        gates = torch.sigmoid(gates)
        mixed = (gates[:, :, None] * every).sum(dim=1) / (gates.sum(dim=1, keepdim=True) + 1e-12)
        return mixed.view(len(mixed), SLOTS, -1)

    def forward(self, ids: Tensor, task: int = 0) -> Tensor:
        """``(B, 1 + slots + T)`` ids to start and end logits of the same length."""
        prompts = self.prompts(task)
        hidden: Tensor = self.encoder.embeddings(input_ids=ids, token_type_ids=torch.ones_like(ids))
        nowhere = hidden.new_zeros(len(ids), 1, 1, ids.shape[1])  # none is passed, so BERT adds one of zeros
        kept = [hidden]
        for layer, prompt in zip(self.encoder.encoder.layer, prompts, strict=True):
            rows, length, width = hidden.shape
            before = hidden.new_zeros(rows, 1, width)
            after = hidden.new_zeros(rows, length - 1 - SLOTS, width)
            hidden = hidden + torch.cat([before, prompt.expand(rows, -1, -1), after], dim=1)
            hidden = layer(hidden, nowhere)
            kept.append(hidden)
        logits: Tensor = self.head(kept[-1])
        return logits

    def optimisers(self, lr: Sequence[float]) -> list[torch.optim.Optimizer]:
        """One for the router, one for prompts (or z and A) and head."""
        others = [p for name, p in self.named_parameters() if p.requires_grad and name != "router"]
        return [torch.optim.AdamW([self.router], lr[0]), torch.optim.AdamW(others, lr[1])]


class ReleasedBatch:
    """One batch: rows in the order they come, slots put in, padded to the longest with id 0."""

    def __init__(self, rows: Sequence[Encoded], device: str = "cpu") -> None:
        windows = [row.windows[0] for row in rows]
        width = max(len(window.ids) for window in windows) + SLOTS
        slots = list(range(FIRST_SLOT, FIRST_SLOT + SLOTS))
        ids = [[w.ids[0], *slots, *w.ids[1:]] for w in windows]
        self.ids = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
        gold = [window.gold or (0, 0) for window in windows]
        self.start, self.end = (torch.tensor([g[i] + SLOTS for g in gold], device=device) for i in (0, 1))
        self.rows = rows


def typical(lengths: NDArray[np.int64], rng: np.random.Generator, rows: int = ROWS) -> NDArray[np.int64]:
    """Lengths in a batch as it comes, of rows in random order: the batch as wide as they are on average."""
    every = rng.permutation(lengths)[: len(lengths) // rows * rows].reshape(-1, rows)
    widths = every.max(axis=1)
    found: NDArray[np.int64] = every[np.abs(widths - widths.mean()).argmin()]
    return found


def train_step(
    model: ReleasedModel, optimisers: Sequence[torch.optim.Optimizer], batch: ReleasedBatch, task: int = 0
) -> None:
    """Forward, loss over all positions, backward, both optimisers."""
    logits = model(batch.ids, task)
    start = F.cross_entropy(logits[..., 0], batch.start)
    loss = (start + F.cross_entropy(logits[..., 1], batch.end)) / 2
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()
    for optimiser in optimisers:
        optimiser.step()


@torch.no_grad()
def answers(model: ReleasedModel, batch: ReleasedBatch, task: int = 0) -> list[int]:
    """Options by the product of raw logits; for span tasks the start of the best span."""
    logits = model(batch.ids, task)
    if batch.rows[0].n_options:
        spans = option_spans(batch.rows).to(logits.device) + SLOTS
        start, end = (logits[..., i].gather(1, spans[..., i]) for i in (0, 1))
        found: list[int] = (start * end).argmax(1).tolist()
        return found
    start, end = logits.argmax(1).unbind(1)
    end.tolist()
    found = start.tolist()
    return found
