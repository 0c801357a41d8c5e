"""The loop: schedules, freezing, accumulation, resume after a kill, full disks, two processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mp2.errors import CheckpointError, ConfigError
from mp2.training.loop import Group, LoopConfig, Trainer, lr_factor, only_trainable


class Numbers:
    """Batches of random rows; the state is the generator's own."""

    def __init__(self, rows: int = 4, rank: int = 0, world: int = 1) -> None:
        self.rng, self.rows, self.rank, self.world = np.random.default_rng(3), rows, rank, world

    def __next__(self) -> torch.Tensor:
        drawn = self.rng.normal(size=(self.rows * self.world, 5)).astype(np.float32)
        return torch.from_numpy(drawn[self.rank :: self.world])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rng.bit_generator.state = dict(state)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def trainer(model: nn.Module, config: LoopConfig, folder: Path | None = None, **kwargs: Any) -> Trainer:
    def loss(batch: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        out = model(batch + 0.1 * torch.randn_like(batch))
        return ((out[:, 0] - batch.sum(1)) ** 2).sum(), len(batch), batch.numel()

    source = kwargs.pop("source", Numbers())
    groups = [
        Group("first", dict(model[0].named_parameters()), 1e-2),
        Group("second", dict(model[2].named_parameters()), 3e-3),
    ]
    return Trainer(groups, source, loss, config, folder=folder, seed=9, **kwargs)


def test_a_loss_that_is_no_number_ends_a_run_before_it_is_saved(tmp_path: Path) -> None:
    class Broken(Numbers):
        def __next__(self) -> torch.Tensor:
            batch = super().__next__()
            self.asked = getattr(self, "asked", 0) + 1
            return batch * float("inf") if self.asked == 4 else batch

    config = LoopConfig(steps=6, save_every=2)
    with pytest.raises(ConfigError, match=r"the loss of step 4 is (nan|inf).*lower learning rates"):
        trainer(net(), config, tmp_path, source=Broken()).fit()
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    trainer(net(), config, source=Broken()).fit()  # few-shot tuning goes on, and keeps its best moment


def test_schedules() -> None:
    cosine = LoopConfig(steps=10, warmup=2, schedule="cosine")
    assert [round(lr_factor(step, cosine), 3) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.038]
    assert lr_factor(9, LoopConfig(steps=10)) == 1.0


def test_only_the_groups_are_trainable() -> None:
    model = net()
    only_trainable(model, [Group("second", dict(model[2].named_parameters()), 1e-3)])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    before = [p.clone() for p in model.parameters()]
    source = Numbers()
    Trainer(
        [Group("second", dict(model[2].named_parameters()), 1e-2)],
        source,
        lambda batch: (model(batch).pow(2).sum(), len(batch), 1),
        LoopConfig(5),
    ).fit()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_accumulated_batches_give_the_gradient_of_the_joint_batch() -> None:
    results = []
    for rows, accumulate in ((8, 1), (2, 4)):
        model = nn.Sequential(nn.Linear(5, 8), nn.Identity(), nn.Linear(8, 1))
        torch.manual_seed(5)
        for p in model.parameters():
            nn.init.normal_(p)
        groups = [Group("all", dict(model.named_parameters()), 1e-2)]

        def loss(batch: torch.Tensor, model: nn.Module = model) -> tuple[torch.Tensor, int, int]:
            return (model(batch)[:, 0] - batch.sum(1)).pow(2).sum(), len(batch), 1

        Trainer(groups, Numbers(rows), loss, LoopConfig(3, accumulate=accumulate)).fit()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_evaluation_happens_when_due_and_at_the_end(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.3])
    run = trainer(net(), LoopConfig(5, eval_every=2), tmp_path, evaluate=lambda: {"score": next(scores)})
    assert run.fit().curve == [
        {"step": 2, "score": 0.1},
        {"step": 4, "score": 0.5},
        {"step": 5, "score": 0.3},
    ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["dev/score"] for line in lines if "dev/score" in line] == [0.1, 0.5, 0.3]


def test_what_is_written_when_the_time_is_up_has_a_score(tmp_path: Path) -> None:
    config = LoopConfig(5, eval_every=2, minutes=1e-9)
    run = trainer(net(), config, tmp_path, evaluate=lambda: {"score": float(run.state.step)})
    assert run.fit().curve == [{"step": 1, "score": 1.0}]


def test_the_board_keeps_every_step_of_a_run_that_went_on(tmp_path: Path) -> None:
    config = LoopConfig(4, save_every=2, log_every=1)
    trainer(net(), config, tmp_path).fit()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")  # as if it had been stopped in step 4
    trainer(net(), config, tmp_path).fit()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="learning rate of first: expected a number of at least 0, got"):
        Group("first", dict(net().named_parameters()), rate)
    with pytest.raises(ConfigError, match="minutes: expected a number of at least 0"):
        LoopConfig(5, minutes=rate)
    with pytest.raises(ConfigError, match="save_every: expected at least 0, got -3"):
        LoopConfig(5, save_every=-3)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second() -> dict[str, float]:
        with pytest.raises(ConfigError, match="another run is writing to it"):
            trainer(net(), LoopConfig(4), tmp_path, settings={"gate": "hard"}).fit()
        return {"score": 1.0}

    assert trainer(net(), LoopConfig(4), tmp_path, evaluate=second).fit().curve == [{"step": 4, "score": 1.0}]
    assert trainer(net(), LoopConfig(5), tmp_path).fit().step == 5


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    trainer(net(), LoopConfig(10, save_every=2, keep=3), tmp_path).fit()
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008", "step-00000010"]


def forty_steps(folder: Path, pause: float = 0.0) -> None:
    """A run that can be killed; it goes on from what the folder holds."""
    torch.manual_seed(9)
    config = LoopConfig(40, warmup=5, schedule="cosine", save_every=3, log_every=1)
    run = trainer(net(), config, folder)
    if pause:
        step = run.one_step
        run.one_step = lambda: (step(), time.sleep(pause))  # type: ignore[method-assign,assignment,func-returns-value]
    run.fit()


def _parameters(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step-00000040" / "state.safetensors").read_bytes()


def test_a_run_killed_at_any_step_and_resumed_ends_bit_identical(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    forty_steps(whole)
    code = f"from tests.training.test_loop import *; forty_steps(Path({str(cut)!r}), 0.05)"
    for wait in (7, 20):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            deadline = time.monotonic() + 300
            while not (cut / "log.jsonl").exists() or _steps(cut) < wait:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    with (cut / "log.jsonl").open("a") as log:
        log.write('{"step": 3')  # as a full disk leaves it
    forty_steps(cut)
    assert _parameters(cut) == _parameters(whole)
    assert (cut / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()  # no step twice


def _steps(folder: Path) -> int:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def test_a_truncated_checkpoint_is_told(tmp_path: Path) -> None:
    trainer(net(), LoopConfig(4, save_every=2), tmp_path).fit()
    file = tmp_path / "checkpoints" / "step-00000004" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"step-00000004: damaged: .*; delete it"):
        trainer(net(), LoopConfig(8), tmp_path).fit()
    (file.parent / "state.json").write_text('{"progress": {"steps": 4}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step-00000004: damaged: .*; delete it"):
        trainer(net(), LoopConfig(8), tmp_path).fit()


SETTINGS = {"gate": "soft", "lr": {"first": 1e-2, "second": 3e-3}, "sizes": (1, 2)}
FOUR = LoopConfig(4, warmup=2, save_every=2)


def test_a_run_goes_on_with_other_lengths_and_intervals(tmp_path: Path) -> None:
    trainer(net(), FOUR, tmp_path, settings=SETTINGS).fit()
    more = LoopConfig(6, warmup=3, save_every=3, eval_every=1, log_every=1, keep=1, minutes=9)
    assert trainer(net(), more, tmp_path, settings=SETTINGS).fit().step == 6
    assert trainer(net(), FOUR, tmp_path, settings=SETTINGS).fit().step == 6


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        (FOUR, SETTINGS | {"gate": "hard"}, "holds another run: gate was 'soft', is now 'hard'; choose"),
        (
            FOUR,
            SETTINGS | {"lr": {"first": 0.5}},
            "lr.first was 0.01, is now 0.5; lr.second was 0.003, is now",
        ),
        (replace(FOUR, warmup=3), SETTINGS, "loop.warmup was 2, is now 3; choose"),
        (replace(FOUR, accumulate=2, steps=9), SETTINGS, "loop.accumulate was 1, is now 2; choose"),
        (
            replace(FOUR, precision="bf16", clip=0),
            SETTINGS,
            "loop.clip was 1.0, is now 0; loop.precision was",
        ),
    ],
)
def test_a_run_with_other_settings_is_refused(
    tmp_path: Path, config: LoopConfig, settings: dict[str, Any], told: str
) -> None:
    trainer(net(), FOUR, tmp_path, settings=SETTINGS).fit()
    model = net()
    with pytest.raises(ConfigError, match=re.escape(told)):
        trainer(model, config, tmp_path, settings=settings).fit()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


def test_a_checkpoint_of_an_earlier_version_goes_on_unless_its_shapes_are_others(tmp_path: Path) -> None:
    trainer(net(), FOUR, tmp_path, settings=SETTINGS).fit()
    file = tmp_path / "checkpoints" / "step-00000004" / "state.json"
    facts = json.loads(file.read_text())
    del facts["settings"], facts["processes"]
    facts |= {"config": {}, "progress": facts["progress"] | {"best": 0.5, "best_step": 2}}
    file.write_text(json.dumps(facts), encoding="utf-8")
    wide = net()
    wide[0] = nn.Linear(1, 8)  # the values of one column would fill all five
    with pytest.raises(ConfigError, match=r"parameter/first.weight was \[8, 5\], is now \[8, 1\]; choose"):
        trainer(wide, FOUR, tmp_path).fit()
    assert trainer(net(), replace(FOUR, steps=6), tmp_path).fit().step == 6


def test_what_the_data_say_against_going_on_is_told_as_it_is(tmp_path: Path) -> None:
    class Others(Numbers):
        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            raise CheckpointError("the order of the data cannot be continued")

    trainer(net(), FOUR, tmp_path).fit()
    with pytest.raises(CheckpointError, match=r"^the order of the data"):
        trainer(net(), FOUR, tmp_path, source=Others()).fit()


def test_a_full_disk_while_saving_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(net(), LoopConfig(4, save_every=4), tmp_path).fit()
    before = _files(tmp_path / "checkpoints")

    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half of a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mp2.training.loop.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer(net(), LoopConfig(6, save_every=2), tmp_path).fit()
    assert _files(tmp_path / "checkpoints") == before


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        Trainer([Group("none", {}, 1e-3)], Numbers(), lambda b: (b.sum(), 1, 1), LoopConfig(1))


class Turns:
    """Batches by number, with whether they ask the second of two parts; in the second step none does."""

    def __init__(self, rank: int, world: int) -> None:
        self.number, self.world = rank, world

    def __next__(self) -> tuple[bool, torch.Tensor]:
        rows = np.random.default_rng(self.number).normal(size=(4, 5)).astype(np.float32)
        asks = self.number in (0, 1, 4)
        self.number += self.world
        return asks, torch.from_numpy(rows)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


def two_parts(rank: int, world: int, accumulate: int) -> list[list[float]]:
    """The parameters of two parts after each of three steps of two batches, whose loss draws noise."""
    torch.manual_seed(1)
    parts = nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 1)])

    def loss(batch: tuple[bool, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
        asks, rows = batch
        out = parts[0](rows + torch.randn_like(rows)) + (parts[1](rows) if asks else 0)
        return (out[:, 0] - rows.sum(1)).pow(2).sum(), len(rows), 1

    group = Group("all", dict(parts.named_parameters()), 1e-2, weight_decay=0.1)
    run = Trainer([group], Turns(rank, world), loss, LoopConfig(3, accumulate=accumulate), seed=5)
    seen = []
    for _ in range(3):
        run.one_step()
        seen.append(torch.cat([p.detach().flatten() for p in parts.parameters()]).tolist())
    return seen


_RANK = """
import json, sys, torch.distributed as dist
from tests.training.test_loop import two_parts
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
print(json.dumps(two_parts(rank, 2, 1)))
dist.destroy_process_group()
"""


def test_two_processes_do_what_one_does_also_to_what_no_batch_asked(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"  # a file: a port that was free a moment ago may be taken by now
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RANK, str(rank), str(meeting)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks)
    alone = torch.tensor(two_parts(0, 1, 2))
    for output in outputs:
        torch.testing.assert_close(torch.tensor(json.loads(output)), alone, atol=1e-6, rtol=1e-5)
    first, second = alone[:, :6], alone[:, 6:]
    assert torch.equal(second[0], second[1]) and not torch.equal(second[1], second[2])
    assert not torch.equal(first[0], first[1])
