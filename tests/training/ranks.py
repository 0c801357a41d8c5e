"""One of several processes: runs step 2 on invented tasks and says what it sent. Started by a launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mp2.data.encode import Encoded, Window
from mp2.model.bank import PromptBank
from mp2.model.checkpoint import Base, load_base
from mp2.runtime import default_device, rank_and_world
from mp2.tasks.render import MRCExample
from mp2.training.loop import LoopConfig
from mp2.training.multitask import MultiTaskConfig, pretrain_prompts

STEPS, TASKS = 6, 3


class Rows(list[Encoded]):
    """Rows in memory, in the form of a prepared split."""

    def take(self, indices: Any) -> list[Encoded]:
        return [self[i] for i in indices]

    def example(self, index: int) -> MRCExample:
        return MRCExample((), ("甲", "乙", "丙"), answer=self[index].answer)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        return np.array([len(row.windows[0].ids) for row in self])


def rows(count: int, seed: int) -> Rows:
    rng, made = np.random.default_rng(seed), Rows()
    for _ in range(count):
        length = int(rng.integers(12, 40))
        spans = [(i, length - 6 + 2 * i, length - 6 + 2 * i) for i in range(3)]
        answer = int(rng.integers(3))
        ids = rng.integers(5, 90, size=length).tolist()
        made.append(Encoded((Window(ids, options=spans, gold=spans[answer][1:]),), 3, answer))
    return made


def tasks() -> dict[str, Any]:
    made = {}
    for number in range(TASKS):
        splits = {"train": rows(21, number), "dev": rows(5, 100 + number)}
        made[f"task-{number}"] = SimpleNamespace(
            split=splits.__getitem__, spec=SimpleNamespace(metric="accuracy")
        )
    return made


def config(accumulate: int) -> MultiTaskConfig:
    loop = LoopConfig(STEPS, accumulate=accumulate, save_every=3, eval_every=3, keep=9, warmup=2)
    return MultiTaskConfig(rows=4, length=4, intrinsic=8, modules=3, loop=loop)


def step_two(base: Base, folder: Path, accumulate: int = 1) -> PromptBank:
    """The bank after ``STEPS`` steps."""
    return pretrain_prompts(base, tasks(), config(accumulate), folder).bank


class Counted:
    """Counts the bytes given to all-reduce."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.plain = torch.distributed.all_reduce
        torch.distributed.all_reduce = self

    def __call__(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(tensor.numel() * tensor.element_size())
        return self.plain(tensor, *args, **kwargs)


def main(source: Path, out: Path, shards: list[bool]) -> None:
    """Runs step 2 once for each way of holding the encoder; the first process writes what it saw."""
    device, counted = default_device(), Counted()
    rank, world = rank_and_world()
    for shard in shards:
        base = load_base(source, device, shard=shard)
        local = [p.to_local() if shard else p for layer in base.backbone.layers for p in layer.parameters()]
        bank = step_two(base, out / ("sharded" if shard else "plain"))
        seen = {
            "world": world,
            "sent": counted.sent[:],
            "trained": sum(p.numel() for p in bank.parameters()) + TASKS * 3 * 3 + 2 * 32 + 2,
            "weights": sum(p.numel() for p in local),
        }
        counted.sent.clear()
        if rank == 0:
            (out / f"{'sharded' if shard else 'plain'}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), [flag == "sharded" for flag in sys.argv[3:]])
