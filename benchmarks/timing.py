"""Interleaved timing: rivals take turns in every round, so that a slow minute hits them all."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

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
    """

    runs: Runs
    samples: int
    tokens: int
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of each rival in each round, for the whole work.

    Attributes:
        seconds: Rival -> seconds per round.
        samples: Rows of one round.
        tokens: Real tokens of one round.
    """

    seconds: dict[str, list[float]]
    samples: int
    tokens: int

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
    return Timed(seconds, cell.samples, cell.tokens)


def _seconds(run: Callable[[], object], device: str) -> float:
    on_card = torch.device(device).type == "cuda"
    if on_card:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if on_card:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matrix_rate(device: str, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """FLOP per second of a large matrix product: the best the machine does."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = [_seconds(lambda: a @ a, device) for _ in range(12)]
    return 2 * size**3 / min(times)


def machine(device: str) -> dict[str, object]:
    """What ran it."""
    facts: dict[str, object] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "gflops": round(matrix_rate(device) / 1e9),
    }
    if torch.device(device).type == "cuda":
        facts["card"] = torch.cuda.get_device_name()
        facts["tflops_bf16"] = round(matrix_rate(device, torch.bfloat16, 8192) / 1e12)
    return facts
