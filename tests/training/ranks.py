"""One of several processes: runs trainings on invented data, says what it sent. Started by a launcher."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mp2.data.encode import Encoded, Window
from mp2.model.backbone import load_tokenizer
from mp2.model.bank import PromptBank
from mp2.model.checkpoint import Base, load_base
from mp2.runtime import default_device, rank_and_world
from mp2.tasks.render import MRCExample
from mp2.training.backbone import BackboneConfig, EncoderShape, pretrain_backbone
from mp2.training.corpus import build_corpus
from mp2.training.loop import LoopConfig
from mp2.training.multitask import MultiTaskConfig, Trainable, pretrain_prompts, warm_up
from mp2.training.ppt import pretrain_ppt

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


def config(accumulate: int, recompute: bool = False) -> MultiTaskConfig:
    loop = LoopConfig(STEPS, accumulate=accumulate, save_every=3, eval_every=3, keep=9, warmup=2)
    return MultiTaskConfig(rows=4, length=4, intrinsic=8, modules=3, recompute=recompute, loop=loop)


def step_two(base: Base, folder: Path, accumulate: int = 1, *, recompute: bool = False) -> PromptBank:
    """The bank after ``STEPS`` steps."""
    return pretrain_prompts(base, tasks(), config(accumulate, recompute), folder).bank


def step_one(made: Path, folder: Path, accumulate: int = 1) -> None:
    """Step 1 on the text and with the tokenizer of a folder; some steps ask for no masked word."""
    tokenizer = load_tokenizer(made / "tokenizer")
    corpus = build_corpus([made / "text.txt"], tokenizer, made / "corpus")
    shape = EncoderShape(layers=2, hidden=32, heads=2, ffn=64, positions=96)
    loop = LoopConfig(STEPS, accumulate=accumulate, log_every=1)
    config = BackboneConfig(shape, {"mlm": 0.3, "cloze": 0.7}, 1e-3, loop, tokens=512)
    pretrain_backbone(corpus, tokenizer, config, folder)


def step_one_b(base: Base, folder: Path, accumulate: int = 1) -> None:
    """A warm-up, which moves the base; its encoder has dropout."""
    rates: dict[Trainable, float] = {"backbone": 1e-3, "head": 1e-3}
    warm_up(base, tasks(), replace(config(accumulate), depth=None, lr=rates), folder)


def step_ppt(base: Base, made: Path, folder: Path, accumulate: int = 1) -> None:
    """PPT on the text of a folder."""
    corpus = build_corpus([made / "text.txt"], base.tokenizer, made / "characters")
    pretrain_ppt(base, corpus, LoopConfig(STEPS, accumulate=accumulate), folder, length=4, tokens=512)


class Counted:
    """Counts the bytes given to all-reduce."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.plain = torch.distributed.all_reduce
        torch.distributed.all_reduce = self

    def __call__(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(tensor.numel() * tensor.element_size())
        return self.plain(tensor, *args, **kwargs)


def main(source: Path, out: Path, ways: list[str]) -> None:
    """Runs one training after the other; the first process writes what it saw."""
    device, counted = default_device(), Counted()
    rank, world = rank_and_world()
    for way in ways:
        if way == "text":
            step_one(out / "made", out / way)
            continue
        shard, recompute = way in ("sharded", "recomputed"), way == "recomputed"
        base = load_base(source, device, shard=shard)
        if way == "warm":
            step_one_b(base, out / way)
            continue
        if way == "ppt":
            step_ppt(base, out / "made", out / way)
            continue
        local = [p.to_local() if shard else p for layer in base.backbone.layers for p in layer.parameters()]
        counted.sent.clear()
        bank = step_two(base, out / way, recompute=recompute)
        seen = {
            "world": world,
            "sent": counted.sent[:],
            "trained": sum(p.numel() for p in bank.parameters()) + TASKS * 3 * 3 + 2 * 32 + 2,
            "tensors": len(list(bank.parameters())) + 3,  # router, and the head's weight and bias
            "weights": sum(p.numel() for p in local),
        }
        if rank == 0:
            (out / f"{way}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
