"""``mp2 pretrain-poly``: multi-task LoRA with a router, the rival of the prompt bank."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from mp2.cli.options import Precision, Seed
from mp2.cli.pretrain import (
    CACHE,
    SUITES,
    Cache,
    EvalEvery,
    Minutes,
    Out,
    Root,
    Rows,
    SaveEvery,
    Steps,
    Suites,
    cosine,
)


def pretrain_poly(
    base: Annotated[str, typer.Argument(help="Encoder or base folder, or a hub name.")],
    out: Out,
    root: Root,
    suite: Suites = SUITES,
    cache: Cache = CACHE,
    skills: Annotated[int, typer.Option(help="LoRA pairs per projection.")] = 8,
    splits: Annotated[int, typer.Option(help="Parts of a projection mixed independently.")] = 1,
    rank: Annotated[int, typer.Option(help="Rank of each pair.")] = 8,
    steps: Steps = 2000,
    rows: Rows = 32,
    save_every: SaveEvery = 250,
    eval_every: EvalEvery = 500,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    seed: Seed = 42,
) -> None:
    """Pre-train Poly's skills and routers on many tasks with the encoder frozen (extra ``baselines``)."""
    from mp2.data.prepare import prepare_suites
    from mp2.model.checkpoint import load_base
    from mp2.model.low_rank import SkillsConfig, check_skills
    from mp2.runtime import check_room, default_device
    from mp2.training.poly import RUN
    from mp2.training.poly import pretrain_poly as run

    check_room(out)
    loop = cosine(steps, save_every=save_every, eval_every=eval_every, minutes=minutes, precision=precision)
    config = replace(RUN, rows=rows, loop=loop, seed=seed)
    shape = SkillsConfig(skills, splits, rank)
    loaded = load_base(base, default_device())
    check_skills(shape, loaded.backbone.hidden_size)
    tasks = prepare_suites(suite, root, loaded.encoder(), cache, splits=("train", "dev"))
    trained = run(loaded, tasks, config, shape, out)
    score = trained.facts["dev"].get("score", float("nan"))
    print(f"poly: dev {score:.4f} after {trained.facts['steps']} steps; {out / 'bank'}", file=sys.stderr)
