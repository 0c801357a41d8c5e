"""``mp2 pretrain-backbone`` (step 1), ``mp2 warm-up`` (step 1b) and ``mp2 pretrain`` (step 2)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mp2.cli.options import Precision, Seed

if TYPE_CHECKING:
    from mp2.training.loop import LoopConfig

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for logs, checkpoints and the result.")]
Suites = Annotated[list[str], typer.Option("--suite", help="Suites, tasks or task files to train on.")]
Root = Annotated[Path, typer.Option(envvar="MP2_DATA", help="Folder of the public data sets.")]
Cache = Annotated[Path, typer.Option(help="Folder of the prepared data.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps in all.")]
Rows = Annotated[int, typer.Option(help="Rows per batch.")]
Tokens = Annotated[int, typer.Option(help="Padded tokens per batch at most.")]
Accumulate = Annotated[int, typer.Option(help="Batches (each of one task) per step.")]
Modules = Annotated[int, typer.Option("--modules", "-k", help="K, prompts per layer.")]
Length = Annotated[int, typer.Option(help="P, vectors per prompt.", min=1)]
Intrinsic = Annotated[int, typer.Option(help="d of z and A; 0 for dense prompts.")]
InitStd = Annotated[float, typer.Option(help="Standard deviation of the initial prompts.")]
SizeExponent = Annotated[
    float, typer.Option(help="Tasks are drawn in proportion to their rows to this power; 0 is uniform.")
]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
EvalEvery = Annotated[int, typer.Option(help="Steps between evaluations.")]
Minutes = Annotated[float, typer.Option(help="Stop resumably after this time; 0 for no limit.")]
SUITES = ["pretrain-38"]
CACHE = Path("runs/cache")


def pretrain_backbone(
    out: Out,
    texts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Text files: .txt, .jsonl, plain or .xz or .gz; none if --out has the token files already."
        ),
    ] = None,
    steps: Steps = 10_000,
    mixture: Annotated[str, typer.Option(help="Objectives and shares: mlm=0.6,cloze=0.4.")] = "mlm=1",
    layers: Annotated[int, typer.Option(help="Layers of the encoder.", min=1)] = 4,
    hidden: Annotated[int, typer.Option(help="Hidden size.", min=1)] = 256,
    heads: Annotated[
        int, typer.Option(help="Attention heads, each of an equal part of the hidden size.", min=1)
    ] = 4,
    positions: Annotated[int, typer.Option(help="Longest input, in tokens.")] = 256,
    vocabulary: Annotated[int, typer.Option(help="Pieces of the vocabulary.")] = 20_000,
    start: Annotated[
        str,
        typer.Option(
            help="plain (layers as BERT's start), matching (comparing words), positions (with heads for"
            " positions as well); or an encoder folder to go on from: its size and tokenizer are kept."
        ),
    ] = "matching",
    tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 4096,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Warm-up steps.")] = 200,
    save_every: SaveEvery = 500,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    seed: Seed = 42,
) -> None:
    """Train a tokenizer and a small encoder from text files (step 1); resumes by itself."""
    from mp2.errors import ConfigError, nearest
    from mp2.model.checkpoint import load_base
    from mp2.runtime import check_room, default_device, one_after_the_other
    from mp2.training.backbone import (
        STARTS,
        BackboneConfig,
        EncoderShape,
        prepare_text,
        shape_of,
        text_of,
    )
    from mp2.training.backbone import pretrain_backbone as run
    from mp2.training.objectives import check_mixture

    if hidden % heads:
        raise ConfigError(f"--hidden {hidden}: expected a multiple of --heads {heads}")
    if start not in STARTS and not Path(start).is_dir():
        raise ConfigError(f"--start {start}: no folder; {nearest(start, STARTS)}")
    check_room(out)
    loop = cosine(
        steps, warmup, betas=(0.9, 0.98), save_every=save_every, minutes=minutes, precision=precision
    )
    base, embeddings, device = None, None, default_device()
    if start in STARTS:
        shape = EncoderShape(layers, hidden, heads, 4 * hidden, positions)
    else:
        base = load_base(start, device)
        shape, vocabulary, start = shape_of(base), len(base.tokenizer), base.fingerprint
    config = BackboneConfig(shape, shares(mixture), lr, loop, tokens, seed, vocabulary, start)
    check_mixture(config.mixture, tokens, shape.positions)
    with one_after_the_other():
        if base is None:
            corpus, tokenizer, embeddings = prepare_text(texts or [], out, vocabulary, hidden)
        else:
            corpus, tokenizer = text_of(texts or [], base.tokenizer, out), base.tokenizer
    progress = run(corpus, tokenizer, config, out, embeddings=embeddings, base=base, device=device)
    _say(
        f"step {progress.step}: {progress.tokens:,} tokens in {progress.seconds / 60:.1f} min;"
        f" {out / 'encoder'}"
    )


def warm_up(
    encoder: Annotated[Path, typer.Argument(help="Encoder folder of step 1.")],
    out: Out,
    root: Root,
    suite: Suites = SUITES,
    cache: Cache = CACHE,
    steps: Steps = 2000,
    lr: Annotated[float, typer.Option(help="Learning rate of the encoder.")] = 4e-4,
    lr_head: Annotated[float, typer.Option(help="Learning rate of the span head.")] = 2e-3,
    bank: Annotated[
        bool, typer.Option(help="Train a deep bank beside the encoder, which so learns to listen to prompts.")
    ] = False,
    bare: Annotated[
        float, typer.Option(help="Share of batches without prompts, where there is a bank.")
    ] = 0.3,
    position_heads: Annotated[
        bool, typer.Option(help="First give the encoder heads that see where words are; once, not again.")
    ] = False,
    modules: Modules = 8,
    length: Length = 16,
    intrinsic: Intrinsic = 128,
    init_std: InitStd = 0.5,
    lr_prompts: Annotated[float, typer.Option(help="Learning rate of prompts.")] = 1e-3,
    lr_router: Annotated[float, typer.Option(help="Learning rate of routers.")] = 5e-3,
    loss: Annotated[Literal["span", "option"], typer.Option(help="Loss of rows with options.")] = "option",
    rows: Rows = 32,
    tokens: Tokens = 6144,
    accumulate: Accumulate = 1,
    mix_options: Annotated[
        float, typer.Option(help="Share of rows whose options are shuffled, and perhaps fewer.")
    ] = 0.5,
    size_exponent: SizeExponent = 0.0,
    save_every: SaveEvery = 250,
    eval_every: EvalEvery = 500,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    seed: Seed = 42,
) -> None:
    """Teach an encoder the reading-comprehension form on upstream tasks with all weights (step 1b)."""
    from mp2.data.prepare import prepare_suites
    from mp2.model.checkpoint import load_base
    from mp2.runtime import check_room, default_device
    from mp2.training.multitask import MultiTaskConfig, Trainable
    from mp2.training.multitask import warm_up as run

    check_room(out)
    base = load_base(encoder, default_device())
    loop = cosine(
        steps,
        min(200, steps // 10),
        accumulate=accumulate,
        save_every=save_every,
        eval_every=eval_every,
        minutes=minutes,
        precision=precision,
    )
    rates: dict[Trainable, float] = {"backbone": lr, "head": lr_head}
    if bank:
        rates |= {"prompts": lr_prompts, "router": lr_router}
    config = MultiTaskConfig(
        "deep" if bank else "warm-up",
        "deep" if bank else None,
        modules,
        length,
        intrinsic,
        init_std=init_std,
        loss=loss,
        lr=rates,
        rows=rows,
        tokens=tokens,
        mix_options=mix_options,
        bare=bare if bank else 0.0,
        position_heads=position_heads,
        size_exponent=size_exponent,
        loop=loop,
        seed=seed,
    )
    tasks = prepare_suites(suite, root, base.encoder(), cache, splits=("train", "dev"))
    progress = run(base, tasks, config, out)
    # the last, as the weights that were written are, not the best
    score = progress.curve[-1]["score"] if progress.curve else float("nan")
    _say(f"step {progress.step}: dev {score:.4f} in {progress.seconds / 60:.1f} min; {out / 'encoder'}")


def pretrain(
    base: Annotated[str, typer.Argument(help="Encoder or base folder, or a hub name.")],
    out: Out,
    root: Root,
    suite: Suites = SUITES,
    cache: Cache = CACHE,
    name: Annotated[str, typer.Option(help="Name of the bank.")] = "deep",
    depth: Annotated[Literal["deep", "shallow"], typer.Option(help="deep or shallow.")] = "deep",
    injection: Annotated[
        Literal["prefix", "add"] | None,
        typer.Option(help="prefix (deep only) or add; by default prefix if deep, add if shallow."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Bank folder to continue from; its shape, injection and gates are kept."),
    ] = None,
    modules: Modules = 8,
    length: Length = 16,
    intrinsic: Intrinsic = 128,
    init_std: InitStd = 0.5,
    lr_prompts: Annotated[float, typer.Option(help="Learning rate of prompts.")] = 1e-3,
    lr_router: Annotated[float, typer.Option(help="Learning rate of routers.")] = 5e-3,
    lr_head: Annotated[float, typer.Option(help="Learning rate of the span head.")] = 1e-3,
    loss: Annotated[Literal["span", "option"], typer.Option(help="Loss of rows with options.")] = "span",
    gate: Annotated[
        Literal["soft", "hard"], typer.Option(help="soft or hard gates after training.")
    ] = "soft",
    combine: Annotated[
        Literal["normalised", "mean"], typer.Option(help="normalised or mean.")
    ] = "normalised",
    steps: Steps = 2000,
    rows: Rows = 32,
    tokens: Tokens = 6144,
    accumulate: Accumulate = 1,
    size_exponent: SizeExponent = 0.0,
    save_every: SaveEvery = 250,
    eval_every: EvalEvery = 500,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    recompute: Annotated[
        bool, typer.Option(help="Compute activations again in the backward pass: slower, far less memory.")
    ] = False,
    shard: Annotated[
        bool, typer.Option(help="Split the encoder's weights over all processes (accelerate launch).")
    ] = False,
    seed: Seed = 42,
) -> None:
    """Pre-train a bank of modular prompts on many tasks with the encoder frozen (step 2)."""
    from mp2.data.prepare import prepare_suites
    from mp2.errors import ConfigError
    from mp2.model.bank import slots_of
    from mp2.model.checkpoint import load_base
    from mp2.model.router import Routing
    from mp2.runtime import check_room, default_device
    from mp2.training.multitask import MultiTaskConfig, pretrain_prompts

    if depth == "shallow" and injection == "prefix":
        raise ConfigError("--injection prefix: expected --depth deep; shallow prompts are added")
    check_room(out)
    loaded = load_base(base, default_device(), shard=shard)
    continued = loaded.bank(str(start)) if start else None
    if continued is not None:
        injection, length = continued.bank.config.injection, continued.bank.config.length
    elif injection is None:
        injection = "prefix" if depth == "deep" else "add"
    loop = cosine(
        steps,
        accumulate=accumulate,
        save_every=save_every,
        eval_every=eval_every,
        minutes=minutes,
        precision=precision,
    )
    config = MultiTaskConfig(
        name,
        depth,
        modules,
        length,
        intrinsic,
        injection,
        init_std,
        Routing(gate, combine),
        loss,
        lr={"prompts": lr_prompts, "router": lr_router, "head": lr_head},
        rows=rows,
        tokens=tokens,
        size_exponent=size_exponent,
        recompute=recompute,
        loop=loop,
        seed=seed,
    )
    tasks = prepare_suites(
        suite, root, loaded.encoder(slots_of(injection, length)), cache, splits=("train", "dev")
    )
    bank = pretrain_prompts(loaded, tasks, config, out, start=continued)
    score = bank.facts["dev"].get("score", float("nan"))
    _say(f"bank {name}: dev {score:.4f} after {bank.facts['steps']} steps; {out / 'bank'}")


def pretrain_ppt(
    base: Annotated[str, typer.Argument(help="Encoder or base folder, or a hub name.")],
    texts: Annotated[list[Path], typer.Argument(help="Text files: .txt, .jsonl, plain or .xz or .gz.")],
    out: Out,
    steps: Steps = 1000,
    length: Length = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of the prompt.")] = 3e-3,
    tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 4096,
    save_every: SaveEvery = 250,
    minutes: Minutes = 0.0,
    precision: Precision = "fp32",
    seed: Seed = 42,
) -> None:
    """Pre-train one shallow prompt on raw text by next-sentence selection (PPT)."""
    from mp2.model.checkpoint import load_base
    from mp2.runtime import check_room, default_device, one_after_the_other
    from mp2.training.corpus import build_corpus
    from mp2.training.objectives import check_mixture
    from mp2.training.ppt import pretrain_ppt as run

    check_room(out)
    loaded = load_base(base, default_device())
    check_mixture({"ppt": 1.0}, tokens, loaded.backbone.max_length - length)
    loop = cosine(steps, save_every=save_every, minutes=minutes, precision=precision)
    with one_after_the_other():
        corpus = build_corpus(texts, loaded.tokenizer, out / "corpus")
    bank = run(loaded, corpus, loop, out, length=length, tokens=tokens, lr=lr, seed=seed)
    _say(f"bank ppt: {bank.facts['steps']} steps in {bank.facts['seconds'] / 60:.1f} min; {out / 'bank'}")


def assemble(
    name: Annotated[str, typer.Argument(help="Name of the base.")],
    encoder: Annotated[Path, typer.Argument(help="Encoder folder or hub name.")],
    banks: Annotated[list[Path], typer.Argument(help="Bank folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the base.")],
    notes: Annotated[Path | None, typer.Option(help="Markdown text of the model card.")] = None,
    replace: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
) -> None:
    """Put an encoder and its banks together as a base, with hashes and a model card."""
    from mp2.errors import ConfigError
    from mp2.runtime import check_folder
    from mp2.training.assemble import assemble as run

    check_folder(out, replace=replace, kind="mp2.json", needed=[notes] if notes else [])
    try:
        text = notes.read_text(encoding="utf-8") if notes else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--notes {notes}: cannot be read as UTF-8 text: {error}") from error
    base = run(name, encoder, banks, out, notes=text, replace=replace)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    _say(f"{base.name}: banks {', '.join(base.banks)}; {size / 1e6:.1f} MB; {out}")


def cosine(steps: int, warmup: int | None = None, **more: Any) -> LoopConfig:
    """A loop whose rates fall along a cosine, after a tenth of the steps, 100 at most, in which they rise."""
    from mp2.training.loop import LoopConfig

    rise = min(100, steps // 10) if warmup is None else warmup
    return LoopConfig(steps, warmup=rise, schedule="cosine", **more)


def shares(text: str) -> dict[str, float]:
    """``a=0.6,b=0.4`` as a dictionary.

    Raises:
        ConfigError: It is not of that form, or a name stands twice.
    """
    from mp2.errors import ConfigError

    parts: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        if name in parts:
            raise ConfigError(f"mixture: {name} stands twice")
        try:
            parts[name] = float(value or 1)
        except ValueError:
            raise ConfigError(f"mixture: expected name=share, got {item!r}") from None
    return parts


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
