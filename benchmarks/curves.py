"""Cost curves: time against rows, tasks, K, P, layers, shots and labels, each with a straight line's fit.

    python benchmarks/curves.py --json curves.json

For every curve: the times, the straight line through them by least squares, its R2, and the exponent with
which they grow at the end (1 is linear, 2 is quadratic, 0 does not depend on it). Rows are invented, of even
length. One thread; seconds are of processor time, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench import Bench
from cells import answer, multitask_trainer, stage_trainer
from workload import SIZES, Shape, Size, random_base

from mp2.data.encode import Encoded
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.router import Routing, router_weights
from mp2.runtime import keep_freed_memory
from mp2.training.multitask import MultiTaskConfig
from mp2.tuning.methods import METHODS
from mp2.tuning.stages import Gradient
from mp2.tuning.state import TaskState

SIZE = SIZES["shipped"]
Curve = tuple[str, dict[int, Callable[[], object]]]


def rows_of(count: int, length: int = 48, labels: int = 4) -> list[Encoded]:
    """Invented rows of one length."""
    rng = np.random.default_rng(count)
    shape = Shape("invented", labels, 1, (length, length))
    return shape.rows([length] * count, rng, SIZE.vocabulary)


def training(bench: Bench) -> Iterator[Curve]:
    """A step of step 2 against tasks, P and layers; 16 rows."""
    batch = rows_of(16)

    def step(base: object = bench.base, tasks: int = 1, length: int = 16) -> Callable[[], object]:
        config = MultiTaskConfig(length=length)
        return multitask_trainer(base, [[batch]] * tasks, config).one_step  # type: ignore[arg-type]

    yield "step 2 against tasks", {n: step(tasks=n) for n in (1, 8, 64, 512)}
    yield "step 2 against P", {n: step(length=n) for n in (16, 32, 64, 128)}
    folders = {n: tempfile.TemporaryDirectory() for n in (2, 4, 8, 16)}
    bases = {
        n: random_base(Path(folder.name) / "base", Size(n, SIZE.hidden, SIZE.heads))
        for n, folder in folders.items()
    }
    yield "step 2 against layers", {n: step(base) for n, base in bases.items()}


def composing(bench: Bench) -> Iterator[Curve]:
    """Router and bank alone, forward and backward, against K."""

    def compose(modules: int) -> Callable[[], object]:
        bank = PromptBank(BankConfig(SIZE.layers, modules, 16, SIZE.hidden, 128))
        logits = torch.zeros(1, SIZE.layers, modules, requires_grad=True)

        def run() -> None:
            bank.compose(router_weights(logits, Routing(), sample=True)).sum().backward()  # type: ignore[no-untyped-call]

        return run

    yield "bank against K", {n: compose(n) for n in (8, 32, 128, 512)}


def tuning(bench: Bench) -> Iterator[Curve]:
    """A step of stage I against the shots."""
    method = METHODS["mp2-deep-gd"]
    first = method.stages[0]
    assert isinstance(first, Gradient)

    def step(shots: int) -> Callable[[], object]:
        state = TaskState(bench.base, method, 0)
        return stage_trainer(bench, state, first.lr, rows_of(shots)).one_step

    yield "few-shot step against shots", {n: step(n) for n in (16, 32, 64, 128)}


@torch.no_grad()
def answering(bench: Bench) -> Iterator[Curve]:
    """Answers against rows, tasks of a mixed batch, and labels."""
    prompts = torch.randn(256, SIZE.layers, 16, SIZE.hidden)
    states = bench.base.backbone.prefix_states(prompts)

    def ask(rows: list[Encoded], tasks: int = 1) -> Callable[[], object]:
        which = [i % tasks for i in range(len(rows))]
        return lambda: answer(bench, rows, states[:tasks], which)

    yield "answers against rows", {n: ask(rows_of(n)) for n in (64, 128, 256, 512)}
    yield "answers against tasks", {n: ask(rows_of(256), n) for n in (1, 16, 64, 256)}
    # a text of 32 tokens and two for each label: a word and a comma
    yield "answers against labels", {n: ask(rows_of(64, 32 + 2 * n, n)) for n in (8, 16, 32, 64)}


def measure(runs: dict[int, Callable[[], object]], rounds: int) -> dict[int, float]:
    """Median seconds of processor time of each, in interleaved rounds after one to warm up."""
    seconds: dict[int, list[float]] = {n: [] for n in runs}
    for number in range(rounds + 1):
        for n, run in runs.items():
            begin = time.process_time()
            run()
            if number:
                seconds[n].append(time.process_time() - begin)
    return {n: median(times) for n, times in seconds.items()}


def fit(times: dict[int, float]) -> dict[str, float]:
    """Straight line through the times, and how they grow at the last doubling."""
    x, y = np.array(list(times), dtype=float), np.array(list(times.values()))
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(((y - slope * x - intercept) ** 2).sum())
    spread = float(((y - y.mean()) ** 2).sum())
    growth = math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])
    return {
        "ms_at_0": 1e3 * intercept,
        "ms_each": 1e3 * slope,
        "r2": 1 - residual / spread if spread else 1.0,
        "exponent": growth,
    }


def main() -> None:
    """Measure all curves and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    found = {}
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench("shipped", random_base(Path(folder) / "base", SIZE))
        for part in (training, composing, tuning, answering):
            for name, runs in part(bench):
                times = measure(runs, arguments.rounds)
                line = fit(times)
                found[name] = {"seconds": times, **line}
                shown = "  ".join(f"{n}: {1e3 * t:.1f}" for n, t in times.items())
                print(
                    f"{name:28} {shown} ms; {line['ms_at_0']:.1f} + {line['ms_each']:.3g} x,"
                    f" R2 {line['r2']:.4f}, exponent {line['exponent']:.2f}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
