"""Weak scaling of step 2: what several processes send per step, counted, against what the method needs.

    python benchmarks/scaling.py --processes 1 2 4

Starts itself under ``torch.distributed.run`` with gloo, one thread per process; each process draws its own
tasks from the one seeded plan and runs batches as large as one process alone would. Bytes are counted where
they are handed to all-reduce. Times mean something only while every process has a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from bench import ROWS, TOKENS
from cells import Split
from workload import SIZES, random_base, shapes

from mp2.data.sampling import MultiTaskSampler
from mp2.model.checkpoint import Base
from mp2.runtime import default_device, rank_and_world
from mp2.training.loop import LoopConfig, Trainer
from mp2.training.multitask import MultiTaskConfig, MultiTaskRun

TASKS, POOL = 8, 256


def worker(folder: Path, size: str, steps: int) -> None:
    """Run steps of step 2 on the base in a folder; the first process writes what it sent there."""
    torch.set_num_threads(1)
    device = default_device()
    rank, world = rank_and_world()
    sent: list[int] = []
    plain = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return plain(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    base = Base(folder / "base", device)
    rng = np.random.default_rng(0)
    rows = [Split(s.rows(s.draw(POOL, rng), rng, SIZES[size].vocabulary)) for s in shapes(TASKS)]
    tasks: dict[str, Any] = {
        str(i): SimpleNamespace(split=lambda name, r=r: r if name == "train" else Split())
        for i, r in enumerate(rows)
    }
    run = MultiTaskRun(base, tasks, MultiTaskConfig(rows=ROWS, tokens=TOKENS))
    lengths = [np.array([len(row.windows[0].ids) for row in task]) for task in rows]
    sampler = MultiTaskSampler(lengths, rows=ROWS, tokens=TOKENS, rank=rank, world=world)
    trainer = Trainer(run.groups(), sampler, run.loss, LoopConfig(steps), device=device)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        trainer.one_step()
        seconds.append(time.perf_counter() - begin)
    if rank == 0:
        facts = {
            "world": world,
            "calls": len(sent) / steps,
            "bytes": sum(sent) / steps,
            "needed": 4 * sum(p.numel() for p in trainer.parameters.values()) if world > 1 else 0,
            "rows": trainer._unread[-1][0].item(),
            "seconds": median(seconds[1:]),
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def launch(size: str, processes: int, steps: int) -> dict[str, Any]:
    """What the first of several processes counted."""
    with tempfile.TemporaryDirectory() as folder:
        random_base(Path(folder) / "base", SIZES[size])  # here: of several processes only the first saves one
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), __file__, "--size", size, "--steps", str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--worker", folder], env=environment, check=True)
        found: dict[str, Any] = json.loads((Path(folder) / "facts.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Launch each number of processes and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", default="shipped", choices=sorted(SIZES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        worker(arguments.worker, arguments.size, arguments.steps)
        return
    print(f"{'processes':>9} {'calls':>6} {'bytes/step':>12} {'needed':>12} {'excess':>8} {'s/step':>7}")
    for processes in arguments.processes:
        f = launch(arguments.size, processes, arguments.steps)
        excess = f"{f['bytes'] / f['needed'] - 1:.4%}" if f["needed"] else "-"
        print(
            f"{f['world']:9} {f['calls']:6.1f} {f['bytes']:12,.0f} {f['needed']:12,} {excess:>8}"
            f" {f['seconds']:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
