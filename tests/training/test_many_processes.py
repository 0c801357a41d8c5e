"""Trainings on several processes: same results, known traffic, resumed by others, sharded encoders."""

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

from mp2.model.checkpoint import Base, load_bank, read_tensors
from tests.micro import CHARACTERS, LAYERS
from tests.training.invented import invented_texts, invented_tokenizer
from tests.training.ranks import STEPS, step_one, step_one_b, step_ppt, step_two

ROOT = Path(__file__).parents[2]
UNCOUNTED = ("text", "warm", "ppt")
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


def launch(base: Base, out: Path, processes: int, *ways: str) -> dict[str, Any]:
    """What the first process saw, by training."""
    accelerate(processes, "tests.training.ranks", str(base.path), str(out), *ways)
    return {way: json.loads((out / f"{way}.json").read_text()) for way in ways if way not in UNCOUNTED}


@pytest.fixture(scope="module")
def alone(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training in one process, with two batches per step."""
    out = tmp_path_factory.mktemp("alone")
    invented_tokenizer().save_pretrained(str(out / "made" / "tokenizer"))
    (out / "made" / "text.txt").write_text("\n".join(invented_texts(120)) + "\n", encoding="utf-8")
    step_one(out / "made", out / "text", accumulate=2)
    step_one_b(Base(base.path), out / "warm", accumulate=2)
    step_two(base, out / "plain", accumulate=2)
    step_ppt(base, out / "made", out / "ppt", accumulate=2)
    return out


@pytest.fixture(scope="module")
def two(base: Base, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two processes: from the start, and from the middle of what one did."""
    out = tmp_path_factory.mktemp("two")
    shutil.copytree(alone / "made", out / "made")
    _go_on(alone / "plain", out / "continued")
    _go_on(alone / "warm", out / "warm")
    return out, launch(base, out, 2, "plain", "sharded", "recomputed", "continued", "text", "warm", "ppt")


def _go_on(run: Path, folder: Path) -> None:
    """A folder whose run shall go on from the middle of another."""
    half = Path("checkpoints") / f"step-{STEPS // 2:08d}"
    shutil.copytree(run / half, folder / half)


def _close(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            a.float(), b.float(), atol=2e-3, rtol=2e-3
        )  # banks are stored in half precision


def _close_encoders(one: Path, other: Path) -> None:
    ours, theirs = (read_tensors(f / "encoder" / "model.safetensors") for f in (one, other))
    for name, value in ours.items():
        # a key's bias moves no attention, the last bias all logits alike: their gradient is rounding alone
        if not name.endswith(("key.bias", f"layer.{LAYERS - 1}.output.LayerNorm.bias")):
            torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=2e-3, msg=name)


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", ["plain", "continued"])
def test_two_processes_do_what_one_does_with_two_batches_per_step(
    alone: Path, two: tuple[Path, dict[str, Any]], way: str
) -> None:
    _close(load_bank(two[0] / way / "bank").bank, load_bank(alone / "plain" / "bank").bank)
    ours, theirs = ([line["dev/score"] for line in _log(f)] for f in (alone / "plain", two[0] / way))
    assert theirs == pytest.approx(ours[-len(theirs) :]) and len(theirs) == (2 if way == "plain" else 1)


def test_step_one_on_two_processes_is_that_of_one_with_two_batches_per_step(
    alone: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    ours, theirs = (_log(folder / "text") for folder in (alone, two[0]))
    assert [line["tokens"] for line in theirs] == [line["tokens"] for line in ours]
    assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in ours], rel=1e-4)
    _close_encoders(alone / "text", two[0] / "text")


def test_a_warm_up_with_dropout_is_continued_by_two_processes_as_it_would_have_gone_on(
    alone: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    assert next(line["step"] for line in _log(two[0] / "warm")) > STEPS // 2
    _close_encoders(alone / "warm", two[0] / "warm")


def test_ppt_on_two_processes_is_that_of_one_with_two_batches_per_step(
    alone: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    ours, theirs = (load_bank(folder / "ppt" / "bank") for folder in (alone, two[0]))
    _close(theirs.bank, ours.bank)
    assert theirs.facts["tokens"] == ours.facts["tokens"]


@pytest.mark.parametrize("way", ["plain", "sharded"])
def test_each_step_sends_the_trained_numbers_once(two: tuple[Path, dict[str, Any]], way: str) -> None:
    seen = two[1][way]
    steps = [size for size in seen["sent"] if size > 100]
    assert steps == [4 * (seen["trained"] + seen["tensors"] + COUNTS)] * STEPS


def test_a_sharded_encoder_is_half_on_each_of_two_processes_and_learns_the_same(
    two: tuple[Path, dict[str, Any]],
) -> None:
    out, seen = two
    plain = load_bank(out / "plain" / "bank")
    for way in ("sharded", "recomputed"):
        assert seen[way]["weights"] == pytest.approx(seen["plain"]["weights"] / 2, rel=0.05)
        found = load_bank(out / way / "bank")
        _close(found.bank, plain.bank)
        assert found.base == plain.base


@pytest.mark.parametrize("way", ["plain", "sharded"])
def test_a_run_of_two_processes_is_continued_by_one(
    base: Base, two: tuple[Path, dict[str, Any]], tmp_path: Path, way: str
) -> None:
    _go_on(two[0] / way, tmp_path)
    _close(step_two(base, tmp_path, accumulate=2), load_bank(two[0] / way / "bank").bank)


def test_traffic_per_process_does_not_grow_with_the_processes(
    base: Base, two: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    three = launch(base, tmp_path, 3, "plain")["plain"]
    assert three["world"] == 3
    assert three["sent"] == two[1]["plain"]["sent"]


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
