"""Every row of the methods table with its stages cut short, and a base that has what each starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mp2.model.checkpoint import Base, save_encoder
from mp2.model.low_rank import LowRank, Skills, SkillsConfig
from mp2.model.mrc import SpanHead
from mp2.tuning.methods import METHODS, Method
from mp2.tuning.stages import Bayes, Cma, Contrastive, Gradient, Stage
from tests.micro import HIDDEN, micro_base, micro_encoder


def short(stage: Stage) -> Stage:
    """The stage with the least work that still exercises all of it."""
    if isinstance(stage, Gradient):
        return replace(stage, steps=3, eval_every=1)
    if isinstance(stage, Contrastive):
        return replace(stage, steps=2, rows=6, eval_every=1)
    if isinstance(stage, Bayes):
        return replace(stage, calls=6, random=4)
    if isinstance(stage, Cma):
        return replace(stage, calls=12, rounds=0, popsize=4, eval_every=8)
    return stage


def short_methods() -> list[Method]:
    """All rows, cut short."""
    return [replace(method, stages=tuple(map(short, method.stages))) for method in METHODS.values()]


def full_base(folder: Path) -> Base:
    """A micro base with every part that a row of the table starts from."""
    base = micro_base(folder)
    other = micro_encoder(len(base.tokenizer), seed=5)
    head = SpanHead(HIDDEN, generator=torch.Generator().manual_seed(3))
    save_encoder(folder / "banks" / "multitask", other, base.tokenizer, head)
    micro_skills(base, head).save(folder / "banks" / "poly")
    return base


def micro_skills(base: Base, head: SpanHead) -> Skills:
    """Random Poly modules of two tasks."""
    backbone = Base(base.path).backbone
    config = SkillsConfig(skills=3, splits=2, rank=2)
    modules = LowRank(backbone, config, tasks=2)
    generator = torch.Generator().manual_seed(4)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.3
        for name, value in (modules.pairs() | modules.routers()).items()
    }
    return Skills(config, tensors, ("alpha", "beta"), head, base.fingerprint, {})
