"""Interleaved timing: rivals take turns in every round, so that a slow minute hits them all."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

from mp2.runtime import native_bf16

Runs = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Rivals set up on the same rows.

    Attributes:
        runs: Rival -> what to time.
        samples: Rows of one run.
        tokens: Real tokens of one run.
        shares: Rival -> share of the work that its run does, where that is not all of it: a slow rival runs
            a part that stands for the whole.
        flops: Multiplications and additions of the bare encoder for one run; 0 where they say nothing.
    """

    runs: Runs
    samples: int
    tokens: int
    shares: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of each rival in each round, for the whole work.

    Attributes:
        seconds: Rival -> seconds per round.
        samples: Rows of one round.
        tokens: Real tokens of one round.
        flops: As in :class:`Cell`.
    """

    seconds: dict[str, list[float]]
    samples: int
    tokens: int
    flops: float = 0.0

    def median(self, name: str) -> float:
        """Seconds of a rival."""
        return median(self.seconds[name])

    def ratio(self, rival: str, ours: str = "mp2") -> tuple[float, float, float]:
        """How many times faster than a rival: median, lowest and highest over the rounds."""
        ratios = [b / a for a, b in zip(self.seconds[ours], self.seconds[rival], strict=True)]
        return median(ratios), min(ratios), max(ratios)


def interleave(
    cell: Cell,
    *,
    budget: float,
    least: int = 3,
    most: int = 9,
    limit: float = math.inf,
    needed: Collection[str] = (),
    device: str = "cpu",
) -> Timed:
    """Run every rival once to warm up, then in turns until the budget is spent.

    Args:
        cell: What to time.
        budget: Seconds to spend, the warm-up counted.
        least: Rounds at least, though the budget be spent.
        most: Rounds at most.
        limit: Seconds after which no further round begins; there is one in any case.
        needed: Rivals that take part though the machine be slow; others stay out if their turn to warm up
            comes after a third of ``limit``.
        device: Where it runs; a card is waited for before the clock is read.
    """
    begin = time.perf_counter()
    names = []
    for name, run in cell.runs.items():
        if name in needed or time.perf_counter() - begin < limit / 3:
            _seconds(run, device)
            names.append(name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(most):
        spent = time.perf_counter() - begin
        if number and (spent > limit or (number >= least and spent > budget)):
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(_seconds(cell.runs[name], device) / cell.shares.get(name, 1.0))
    return Timed(seconds, cell.samples, cell.tokens, cell.flops)


def _seconds(run: Callable[[], object], device: str) -> float:
    on_card = torch.device(device).type == "cuda"
    if on_card:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if on_card:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Where a card rounds the factors of fp32 products to ten bits, as older releases of PyTorch do."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def matrix_rate(device: str, precision: str) -> float:
    """FLOP per second of a large matrix product: the best the machine does."""
    size = 8192 if torch.device(device).type == "cuda" else 1024  # a card is not filled by less
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device).to(dtype)
    with tf32() if precision == "tf32" else contextlib.nullcontext():
        times = [_seconds(lambda: a @ a, device) for _ in range(12)]
    return 2 * size**3 / min(times)


def matrix_rates(device: str) -> dict[str, float]:
    """The same for each precision in which the machine multiplies by itself."""
    on_card = torch.device(device).type == "cuda"
    also = ("tf32", "bf16") if on_card else ("bf16",) if native_bf16() else ()
    return {precision: matrix_rate(device, precision) for precision in ("fp32", *also)}


def machine(device: str, rates: Mapping[str, float]) -> dict[str, object]:
    """What ran it."""
    facts: dict[str, object] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "gflops": {precision: round(rate / 1e9) for precision, rate in rates.items()},
    }
    if torch.device(device).type == "cuda":
        facts["card"] = torch.cuda.get_device_name()
    return facts
