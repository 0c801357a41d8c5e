"""Adapters made by hand and a stated speed, so that serving is tested without tuning and without a clock."""

from __future__ import annotations

from pathlib import Path

import torch

from mp2.model.checkpoint import Base
from mp2.serving.batcher import row_cost
from mp2.serving.speed import Speed
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter
from tests.micro import HIDDEN, LENGTH, MODULES

REVIEWS = TaskSpec(name="reviews", family="classification", labels=("好", "坏", "一般"))
PAIRS = TaskSpec(name="pairs", family="pair", labels=("矛盾", "相似"))
TARGETS = TaskSpec(name="targets", family="extraction")
COST = row_cost(("t", "a"))
ROWS = {
    "classification": ["味道很好", "送得太慢，不要再来了，我很不喜欢", "一般", "手机好用" * 20],
    "pair": [{"text1": "他喜欢猫", "text2": "他不喜欢狗"}, {"text1": "好", "text2": "非常好" * 9}],
    "extraction": ["上海的咖啡店很好", "这家店的服务态度不太好，味道也就那样" * 12],
}


class Stated(Speed):
    """So many seconds for a row of one character, whatever is measured."""

    def __init__(self, row: float) -> None:
        super().__init__()
        self.row = row

    def learn(self, cost: int, seconds: float, now: float | None = None) -> None:
        pass

    def seconds(self, cost: int, batches: int = 1) -> float:
        return self.row * cost / COST


def adapter(base: Base, task: TaskSpec, seed: int, kind: str = "router") -> Adapter:
    """A random adapter that consists of what ``kind`` says; ``prompts`` come with a head."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    head = {"head.weight": random(2, HIDDEN), "head.bias": random(2)}
    bank = {"router": "deep", "prompts": "deep", "shallow": "shallow"}.get(kind)
    tensors = {
        "router": lambda: {"router": random(base.backbone.depth, MODULES) * 3},
        "prompts": lambda: {"prompts": random(base.backbone.depth, LENGTH, HIDDEN), **head},
        "shallow": lambda: {"router": random(1, MODULES) * 3},
        "head": lambda: head,
        "probe": lambda: {
            "probe.weight": random(len(task.labels), HIDDEN),
            "probe.bias": random(len(task.labels)),
        },
        "backbone": lambda: {
            f"backbone.{key}": value + 0.05 * random(*value.shape)
            for key, value in base.backbone.state_dict().items()
            if value.is_floating_point()
        },
    }[kind]()
    return Adapter(
        task,
        f"made-{kind}",
        base.name,
        base.fingerprint,
        bank,
        base.bank(bank).fingerprint if bank else "",
        "add" if kind == "shallow" else "prefix",
        tensors,
        {"seed": seed, "shots": 0, "dev": 0.5},
    )


def folder(base: Base, path: Path) -> Path:
    """A folder with an adapter of each family and kind."""
    adapter(base, REVIEWS, 1).save(path / "reviews")
    adapter(base, PAIRS, 2, "prompts").save(path / "pairs")
    adapter(base, TARGETS, 3).save(path / "targets")
    return path
