"""``mp2 methods``, ``mp2 evaluate`` and ``mp2 report``: the methods, the grid of runs, its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mp2.cli.options import LAST_SEED, Calibrate, Json, Model, Precision, Refit, pairs

Root = Annotated[Path | None, typer.Option(help="Folder of the data sets.", envvar="MP2_DATA")]


def methods(json_: Json = False) -> None:
    """List the methods: what each starts from and what it moves, in order."""
    from mp2.tuning.methods import METHODS

    if json_:
        rows = [
            {
                "name": m.name,
                "version": m.version,
                "bank": m.bank,
                "fresh": m.fresh,
                "stages": [stage.groups for stage in m.stages],
                "about": m.about,
            }
            for m in METHODS.values()
        ]
        print(json.dumps(rows))
        return
    print(f"{'method':24} {'starts from':16} {'moves':34} about")
    for m in METHODS.values():
        start = f"bank {m.bank}" if m.bank else (f"fresh, {m.fresh}" if m.fresh else "encoder")
        moves = " -> ".join(" + ".join(stage.groups) for stage in m.stages) or "nothing"
        print(f"{m.name:24} {start:16} {moves:34} {m.about}")


def evaluate(
    suite: Annotated[
        str, typer.Option(help="Suites or tasks of the catalogue, or task files, separated by commas.")
    ],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas, or 'all'; see 'mp2 methods'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Records file (JSONL), appended to.")],
    root: Root = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "8,13,21,42,100",
    model: Model = None,
    test_rows: Annotated[
        int, typer.Option(help="Test rows of a task, a fixed random subset; 0 for all.")
    ] = 0,
    shots: Annotated[
        str | None, typer.Option(help="Rows per label, separated by commas; the paper's protocol by default.")
    ] = None,
    variant: Annotated[str, typer.Option(help="Name of an ablation, kept in the records.")] = "",
    bank: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER: use another bank in place of one of the base.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a stage's setting, such as lr.prompts=0.01 or 2.steps=64."),
    ] = None,
    precision: Precision = "fp32",
    refit: Refit = False,
    calibrate: Calibrate = False,
    splits: Annotated[
        str, typer.Option(help="Split to draw from, and split to score; train,dev to choose settings.")
    ] = "pool,test",
    known: Annotated[
        list[Path] | None, typer.Option(help="Other records files; runs that they hold are not done again.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared data.")] = None,
    runner: Annotated[
        Literal["local", "ray"], typer.Option(help="This process, or workers of a Ray cluster (extra 'ray').")
    ] = "local",
    workers: Annotated[int, typer.Option(help="Workers of the Ray runner.", min=1)] = 2,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; a local one is started when absent.")
    ] = None,
) -> None:
    """Run methods x tasks x seeds with the true few-shot protocol; one JSON record per run, resumable."""
    from mp2.data.cache import default_cache
    from mp2.errors import ConfigError
    from mp2.evaluation.grid import Grid, run_grid
    from mp2.runtime import default_device

    if root is None:
        raise ConfigError("give the folder of the data sets with --root, or as the variable MP2_DATA")
    grid = Grid(
        tasks=_listed(suite),
        methods=_listed(methods),
        seeds=_seeds(seeds),
        root=root,
        cache=cache or default_cache(),
        model=model,
        shots=_numbers("shots", shots) if shots else (None,),
        test_rows=test_rows,
        variant=variant,
        banks=pairs("--bank", "NAME=FOLDER", bank or []),
        settings=pairs("--set", "NAME=VALUE", setting or []),
        precision=precision,
        refit=refit,
        calibrate=calibrate,
        splits=_two_splits(splits),
        device=default_device(),
    )
    done, failed = run_grid(grid, out, runner=runner, workers=workers, address=address, known=known or ())
    print(f"{done} runs done, {failed} failed: {out}")
    if failed:
        raise typer.Exit(1)


def report(
    records: Annotated[list[Path], typer.Argument(help="Records files that 'mp2 evaluate' wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the report; standard output when absent.")
    ] = None,
    leaks: Annotated[
        Path | None, typer.Option(help="What 'mp2 data leaks --json' printed, to flag contaminated tasks.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base, for its rows of Table 1 and Figure 5.")] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Accept records of mixed versions or models.")
    ] = False,
) -> None:
    """Make the paper's tables and figures from records."""
    from mp2.evaluation.records import read_records
    from mp2.evaluation.report import build_report, read_leaks
    from mp2.evaluation.results import Results
    from mp2.model.checkpoint import load_base

    results = Results(read_records(records), mixed=mixed)
    base = load_base(model) if model else None
    made = build_report(results, leaks=read_leaks(leaks) if leaks else None, base=base)
    if out is None:
        print(made.markdown())
        return
    written = made.write(out)
    for path in written:
        print(path)
    kinds = {path.suffix for path in written}
    there = [path for name in ("tables", "figures") for path in sorted((out / name).glob("*"))]
    if old := [path.name for path in there if path.suffix in kinds and path not in written]:
        print(f"not of this report, from one before: {', '.join(old)}", file=sys.stderr)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(name: str, text: str) -> tuple[int, ...]:
    from mp2.errors import ConfigError

    try:
        return tuple(int(part) for part in _listed(text))
    except ValueError:
        raise ConfigError(f"--{name}: expected whole numbers separated by commas, got {text!r}") from None


def _seeds(text: str) -> tuple[int, ...]:
    from mp2.errors import ConfigError

    seeds = _numbers("seeds", text)
    if wrong := [seed for seed in seeds if not 0 <= seed <= LAST_SEED]:
        raise ConfigError(f"--seeds: expected numbers from 0 to {LAST_SEED}, got {wrong[0]}")
    return seeds


def _two_splits(text: str) -> tuple[str, str]:
    from mp2.errors import ConfigError

    names = _listed(text)
    if len(names) != 2:
        raise ConfigError(f"--splits: expected two names, such as pool,test, got {text!r}")
    return names[0], names[1]
