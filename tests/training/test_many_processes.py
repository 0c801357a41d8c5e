"""Step 2 on several processes: the same result, known traffic, another number of them, a sharded encoder."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mp2.model.checkpoint import Base, load_bank
from mp2.training.objectives import Mixture
from tests.micro import CHARACTERS
from tests.training.ranks import STEPS, step_two

ROOT = Path(__file__).parents[2]
COUNTS = 4  # rows, loss, tokens and time-outs ride along in the same buffer


def accelerate(processes: int, module: str, *arguments: str) -> None:
    """Run a module on several processes, as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # without a card, --multi_gpu is still what makes accelerate start several processes
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def launch(base: Base, out: Path, processes: int, *shards: str) -> dict[str, Any]:
    """What the first process saw, by way of holding the encoder."""
    accelerate(processes, "tests.training.ranks", str(base.path), str(out), *shards)
    return {name: json.loads((out / f"{name}.json").read_text()) for name in shards}


@pytest.fixture(scope="module")
def two(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two processes, with a whole and with a sharded encoder."""
    out = tmp_path_factory.mktemp("two")
    return out, launch(base, out, 2, "plain", "sharded")


def _close(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            a.float(), b.float(), atol=2e-3, rtol=2e-3
        )  # banks are stored in half precision


def test_two_processes_do_what_one_does_with_two_batches_per_step(
    base: Base, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    alone = step_two(base, tmp_path, accumulate=2)
    _close(load_bank(two[0] / "plain" / "bank").bank, alone)
    ours, theirs = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path, two[0] / "plain")
    )
    assert [line["dev/score"] for line in theirs] == pytest.approx([line["dev/score"] for line in ours])


@pytest.mark.parametrize("way", ["plain", "sharded"])
def test_each_step_sends_the_trained_numbers_once(two: tuple[Path, dict[str, Any]], way: str) -> None:
    seen = two[1][way]
    steps = [size for size in seen["sent"] if size > 100]
    assert steps == [4 * (seen["trained"] + COUNTS)] * STEPS


def test_a_sharded_encoder_is_half_on_each_of_two_processes_and_learns_the_same(
    two: tuple[Path, dict[str, Any]],
) -> None:
    out, seen = two
    assert seen["sharded"]["weights"] == pytest.approx(seen["plain"]["weights"] / 2, rel=0.05)
    plain, sharded = (load_bank(out / way / "bank") for way in ("plain", "sharded"))
    _close(sharded.bank, plain.bank)
    assert sharded.base == plain.base


def test_a_run_of_two_processes_is_continued_by_one(
    base: Base, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    half = tmp_path / "checkpoints"
    shutil.copytree(two[0] / "plain" / "checkpoints" / "step-00000003", half / "step-00000003")
    _close(step_two(base, tmp_path, accumulate=2), load_bank(two[0] / "plain" / "bank").bank)


def test_traffic_per_process_does_not_grow_with_the_processes(
    base: Base, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    four = launch(base, tmp_path, 4, "plain")["plain"]
    assert four["world"] == 4
    assert four["sent"] == two[1]["plain"]["sent"]


def test_the_command_runs_on_two_processes(base: Base, tmp_path: Path) -> None:
    rng = random.Random(0)
    reviews = ["".join(rng.sample(CHARACTERS, 12)) for _ in range(120)]
    (tmp_path / "Waimai").mkdir()
    lines = "".join(f"{i % 2},{text}\n" for i, text in enumerate(reviews))
    (tmp_path / "Waimai" / "waimai_10k.csv").write_text(f"label,review\n{lines}", encoding="utf-8")
    options = {"out": "run", "root": ".", "cache": "cache"}
    arguments = [f"--{name}={tmp_path / value}" for name, value in options.items()]
    arguments += ["--suite=waimai", "--steps=4", "--rows=8", "--length=4", "--intrinsic=8"]
    arguments += ["--modules=3", "--shard"]
    accelerate(2, "mp2.cli.main", "pretrain", str(base.path), *arguments)
    bank = load_bank(tmp_path / "run" / "bank")
    assert (bank.tasks, bank.facts["steps"]) == (("waimai",), 4)


def test_processes_of_step_one_share_one_stream_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixture, "batch", lambda self, step: ("mlm", [step]))
    streams = []
    for rank in range(3):
        mixture = Mixture.__new__(Mixture)
        mixture._step, mixture._rank, mixture._world = 0, rank, 3
        streams.append([next(mixture)[1][0] for _ in range(2)])
    assert sorted(step for stream in streams for step in stream) == list(range(6))
