"""What every cell stands on: a size and its base, rows as mp2 and its rivals take them, the bare encoder.

A set of ``POOL`` batches stands behind each task. What orders rows by length (mp2) runs those that lie beside
one another and are as long as all are on average; what takes them as they come runs a batch as wide as its
batches are on average. Decides nothing about what is timed (``cells``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from released import ROWS as RELEASED
from released import ReleasedModel, typical
from timing import tf32
from workload import SIZES, Shape, random_encoder, similar

from mp2.data.encode import Encoded
from mp2.model.checkpoint import Base
from mp2.runtime import autocast, native_bf16

ROWS, TOKENS = 32, 6144  # of a batch of step 2, as ``mp2 pretrain`` has them
CARD_ROWS, CARD_TOKENS = 256, 32_768  # a card is not filled by less
SHOTS = 32
POOL = 64
Precision = Literal["fp32", "bf16"]
Run = Callable[[], object]
Runs = dict[str, Run]


def in_turn(calls: Sequence[Run]) -> Run:
    """One call after the other."""

    def run() -> None:
        for call in calls:
            call()

    return run


@dataclass(frozen=True)
class Bench:
    """A size, its base and how much to run.

    Attributes:
        size: Name of the size.
        base: Random base of that size.
        shapes: Tasks of a cell.
        rivals: Whether to run the released way and PEFT.
        precision: fp32 or bf16, of all but the released way.
        rows: Rows of a batch of step 2; of an evaluation, twice as many.
        tokens: Padded tokens that a batch of step 2 holds at most.
        seed: Seed of rows.
    """

    size: str
    base: Base
    shapes: Sequence[Shape] = ()
    rivals: bool = True
    precision: Precision = "fp32"
    rows: int = ROWS
    tokens: int = TOKENS
    seed: int = 0
    bare: Any = field(init=False)

    def __post_init__(self) -> None:
        encoder = random_encoder(SIZES[self.size]).to(self.base.device).eval().requires_grad_(False)
        object.__setattr__(self, "bare", encoder)

    @property
    def rng(self) -> np.random.Generator:
        """The same numbers for every cell."""
        return np.random.default_rng(self.seed)

    @property
    def on_card(self) -> bool:
        """Whether it runs on a card."""
        return torch.device(self.base.device).type == "cuda"

    @property
    def precisions(self) -> dict[str, Precision]:
        """Suffix of a way's name, and its precision."""
        also = self.base.device == "cpu" and self.precision == "fp32" and native_bf16()
        found: dict[str, Precision] = {"": self.precision}
        return found | {" bf16": "bf16"} if also else found

    def released_model(self, tasks: int, *, multiplied: bool = False) -> ReleasedModel:
        """A fresh model of the released way."""
        encoder = random_encoder(SIZES[self.size], dropout=0.1)
        return ReleasedModel(encoder, tasks, multiplied=multiplied).to(self.base.device)

    def bare_pass(self, rows: int, tokens: int, *, backward: bool, precision: Precision = "fp32") -> None:
        """The encoder over ``rows`` rows of equal length, about ``tokens`` tokens in all."""
        length = max(1, round(tokens / rows))
        ids = torch.full((rows, length), 7, device=self.base.device)
        with torch.no_grad():
            embedded = self.bare.embeddings(input_ids=ids)
        with torch.set_grad_enabled(backward), autocast(self.base.device, precision):
            hidden = embedded.requires_grad_(backward)
            for layer in self.bare.encoder.layer:
                hidden = layer(hidden)
        if backward:
            hidden.backward(torch.ones_like(hidden))


def ours(bench: Bench, shape: Shape, count: int) -> list[Encoded]:
    """``count`` rows of a task that lie together when its rows are ordered by length."""
    rng = bench.rng
    lengths = similar(shape.draw(POOL * bench.rows, rng), count)
    return shape.rows(lengths, rng, SIZES[bench.size].vocabulary)


def theirs(bench: Bench, shape: Shape, count: int = RELEASED) -> list[Encoded]:
    """A batch of the same task as it comes."""
    rng = bench.rng
    lengths = typical(shape.draw(POOL * count, rng), rng, count)
    return shape.rows(lengths, rng, SIZES[bench.size].vocabulary)


def drawn(bench: Bench, shape: Shape, count: int = SHOTS) -> list[Encoded]:
    """``count`` rows of a task as they come."""
    rng = bench.rng
    return shape.rows(shape.draw(count, rng), rng, SIZES[bench.size].vocabulary)


def bare(
    bench: Bench, counts: Sequence[tuple[int, int]], precision: Precision, *, backward: bool = True
) -> Run:
    """The bare encoder over batches of so many rows and tokens."""
    each = partial(bench.bare_pass, backward=backward, precision=precision)
    return in_turn([partial(each, *count) for count in counts])


def released_ways(bench: Bench, run: Run) -> Runs:
    """The released way in fp32, and on a card with products in TF32 too."""

    def rounded() -> None:
        with tf32():
            run()

    return {"released": run} | ({"released tf32": rounded} if bench.on_card else {})
