"""Who executes the runs of a grid: this process, or workers of a Ray cluster (extra ``ray``).

Both yield the same records; only the order in which they come differs. The records file is always written by
the process that was started by the user.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mp2.errors import ConfigError
from mp2.evaluation.records import Record
from mp2.tasks import catalogue

if TYPE_CHECKING:
    from mp2.evaluation.grid import Bench, Grid, Run

Done = tuple["Run", Record, float]  # with the seconds it took


def run_here(bench: Bench, runs: Sequence[Run]) -> Iterator[Done]:
    """Run one after the other in this process."""
    for run in runs:
        begin = time.monotonic()
        record = bench.run(run)
        yield run, record, time.monotonic() - begin


def run_on_ray(bench: Bench, runs: Sequence[Run], workers: int, address: str | None) -> Iterator[Done]:
    """Spread runs over workers, each of which loads the base once; results come as they are ready.

    A worker that dies costs the run it was on, which is recorded as failed; another one takes its place.

    Args:
        bench: The grid, made ready here; workers on other machines need the same paths.
        runs: What to run.
        workers: Processes.
        address: Ray cluster to join; a local one is started when None.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be joined.
    """
    ray = _ray()
    started = _join(ray, workers, address)
    grid = _absolute(bench.grid)
    have = ray.cluster_resources()
    workers = max(1, min(workers, len(runs), int(have.get("CPU", workers))))  # one more would never start
    share = gpu_share(have.get("GPU", 1.0), workers) if grid.device.startswith("cuda") else 0
    actor = ray.remote(num_cpus=1, num_gpus=share)(_Worker)
    try:
        free = [actor.remote(grid) for _ in range(workers)]
        waiting = list(reversed(runs))
        busy: dict[Any, tuple[Any, Run, float]] = {}
        while waiting or busy:
            while free and waiting:
                worker, run = free.pop(), waiting.pop()
                busy[worker.run.remote(run)] = (worker, run, time.monotonic())
            ready, _ = ray.wait(list(busy), num_returns=1)
            worker, run, begin = busy.pop(ready[0])
            try:
                record = ray.get(ready[0])
                free.append(worker)
            except ray.exceptions.RayError as error:
                record = replace(bench.planned(run), error=f"{type(error).__name__}: {error}"[:2000])
                ray.kill(worker)  # where it lives, it gives its place away
                free.append(actor.remote(grid))
            yield run, record, time.monotonic() - begin
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """A process of the cluster with its own bench."""

    def __init__(self, grid: Grid) -> None:
        from mp2.evaluation.grid import Bench

        torch.set_num_threads(1)  # Ray counts one core per worker
        self.bench = Bench(grid)

    def run(self, run: Run) -> Record:
        """One run."""
        return self.bench.run(run)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("the Ray runner needs the extra 'ray': pip install 'mp2[ray]'") from None
    return ray


def gpu_share(accelerators: float, workers: int) -> float:
    """Accelerators for each worker: one, or a part where there are more workers than accelerators.

    A small encoder leaves most of a card idle, so several runs at a time are faster than one. No worker lies
    on two cards, so each card takes as many as the fullest.
    """
    return 1.0 / math.ceil(workers / max(1.0, accelerators))


def _join(ray: Any, workers: int, address: str | None) -> bool:
    """Join or start a cluster; says whether one was joined or started here."""
    if ray.is_initialized():
        return False
    local = {"num_cpus": workers, "include_dashboard": False} if address is None else {}
    try:
        # without an address Ray would join whatever runs on this machine
        ray.init(address=address or "local", logging_level="ERROR", log_to_driver=False, **local)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error
    return True


def _absolute(grid: Grid) -> Grid:
    """Paths as workers, whose folder is another one, can find them."""
    banks = {name: str(Path(folder).resolve()) for name, folder in grid.banks.items()}
    model = str(Path(grid.model).resolve()) if grid.model and Path(grid.model).exists() else grid.model
    tasks = tuple(str(Path(name).resolve()) if catalogue.is_file(name) else name for name in grid.tasks)
    root, cache = grid.root.resolve(), grid.cache.resolve()
    return replace(grid, tasks=tasks, root=root, cache=cache, model=model, banks=banks)
