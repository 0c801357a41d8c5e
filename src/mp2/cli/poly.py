"""``mp2 pretrain-poly``: multi-task LoRA with a router, the rival of the prompt bank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mp2.cli.pretrain import Minutes, Out, Precision, Seed, Steps


def pretrain_poly(
    base: Annotated[str, typer.Argument(help="Encoder or base folder, or a hub name.")],
    out: Out,
    suite: Annotated[list[str], typer.Option(help="Suites or tasks to train on.")] = ["pretrain-38"],  # noqa: B006
    root: Annotated[
        Path | None, typer.Option(envvar="MP2_DATA", help="Folder of the public data sets.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder of the prepared data.")] = Path("runs/cache"),
    skills: Annotated[int, typer.Option(help="LoRA pairs per projection.")] = 8,
    splits: Annotated[int, typer.Option(help="Parts of a projection mixed independently.")] = 1,
    rank: Annotated[int, typer.Option(help="Rank of each pair.")] = 8,
    steps: Steps = 2000,
    rows: Annotated[int, typer.Option(help="Rows per batch.")] = 32,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 500,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    seed: Seed = 42,
) -> None:
    """Pre-train Poly's skills and routers on many tasks with the encoder frozen (extra ``baselines``)."""
    from mp2.data.prepare import prepare_suites
    from mp2.errors import ConfigError
    from mp2.model.checkpoint import load_base
    from mp2.model.low_rank import SkillsConfig
    from mp2.runtime import default_device
    from mp2.training.loop import LoopConfig
    from mp2.training.poly import PolyConfig
    from mp2.training.poly import pretrain_poly as run

    if root is None:
        raise ConfigError("name the folder of the public data sets with --root or MP2_DATA")
    loop = LoopConfig(
        steps,
        warmup=min(100, steps // 10),
        schedule="cosine",
        save_every=save_every,
        eval_every=eval_every,
        minutes=minutes,
        precision=precision,
    )
    config = PolyConfig(SkillsConfig(skills, splits, rank), rows=rows, loop=loop, seed=seed)
    loaded = load_base(base, default_device())
    tasks = prepare_suites(suite, root, loaded.encoder(), cache, splits=("train", "dev"))
    trained = run(loaded, tasks, config, out)
    score = trained.facts["dev"].get("score", float("nan"))
    print(f"poly: dev {score:.4f} after {trained.facts['steps']} steps; {out / 'bank'}", file=sys.stderr)
