"""The grid on a local Ray cluster of two worker processes: the same records as in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mp2.evaluation.grid import Grid, run_grid
from mp2.evaluation.records import Record, read_records
from mp2.evaluation.runners import gpu_share
from mp2.model.checkpoint import Base
from tests.evaluation.invented import write_data

pytest.importorskip("ray")
SECONDS = 300  # a cluster starts in a few; a busy machine may take much longer


def _numbers(path: Path) -> dict[str, tuple[object, ...]]:
    def numbers(r: Record) -> tuple[object, ...]:
        return r.test, str(r.scores), r.dev, r.draw, r.tuned_parameters, r.calls, r.status

    return {record.key: numbers(record) for record in read_records([path])}


def _on_ray(root: Path, base: Base, out: Path, shots: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: Ray leaves sockets and children to the collector."""
    arguments = ["evaluate", "--suite", "chnsent,cote-bd", "--methods", "zero-shot,zero-shot-base"]
    arguments += ["--seeds", "8,13", "--shots", shots, "--root", str(root), "--cache", str(root / "cache")]
    arguments += ["--model", str(base.path), "--out", str(out), "--runner", "ray", "--workers", "2"]
    command = [sys.executable, "-m", "mp2.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize(("cards", "workers"), [(1, 1), (1, 3), (2, 3), (2, 5), (4, 2), (8, 8), (3, 7)])
def test_every_worker_finds_room_on_a_card(cards: int, workers: int) -> None:
    share = gpu_share(cards, workers)
    assert 0 < share <= 1 and cards * int(1 / share + 1e-9) >= workers


def test_two_workers_write_the_records_of_one_process(base: Base, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    tasks, methods = ("chnsent", "cote-bd"), ("zero-shot", "zero-shot-base")
    grid = Grid(tasks, methods, (8, 13), root, root / "cache", model=str(base.path), shots=(4,))
    run_grid(grid, here, base=base, say=lambda _: None)
    # the pool has no 500 rows per label: those runs fail, are recorded, and the others go on
    done = _on_ray(root, base, there, "4,500")
    assert done.returncode == 1, done.stderr
    assert "8 runs done, 8 failed" in done.stdout and "ETA" in done.stderr
    failed = [r for r in read_records([there]) if r.status == "failed"]
    assert len(failed) == 8 and all("the pool is too small" in r.error for r in failed)
    found = {key: numbers for key, numbers in _numbers(there).items() if numbers[-1] == "done"}
    assert found == _numbers(here)
