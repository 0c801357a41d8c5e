"""``mp2 data``: fetch and prepare data sets, look at rendered rows, find overlaps, count rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mp2.cli.options import Json

if TYPE_CHECKING:
    from mp2.data.encode import Encoder

app = typer.Typer(no_args_is_help=True, help="Fetch, prepare and look at the public data sets.")

Names = Annotated[
    list[str], typer.Argument(help="Suites, such as pretrain-38, tasks of the catalogue, or task files.")
]
Root = Annotated[Path | None, typer.Option(envvar="MP2_DATA", help="Folder of the public data sets.")]
PAPER = ["pretrain-38", "unseen-data-7", "unseen-task-7"]


@app.command()
def fetch(
    names: Names,
    root: Root = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Address of the hub; HF_ENDPOINT or the public one by default.")
    ] = None,
    json_: Json = False,
) -> None:
    """Bring sets that are on the Hugging Face hub into the folder of the data sets."""
    from mp2.data.hub import fetch as bring
    from mp2.errors import DataError
    from mp2.tasks import catalogue

    several = [catalogue.tasks_of(name) for name in names]
    tasks = {task.name: task for each in several for task in each}
    done = bring(list(tasks.values()), _root(root, absent=True), endpoint=endpoint, say=_say)
    single = {each[0].name for each in several if len(each) == 1}
    alone = [line for name, line in done.by_hand.items() if name in single]
    for line in done.by_hand.values():
        if line not in alone:
            _say(f"by hand: {line}")
    if json_:
        fetched = {name: [str(path) for path in paths] for name, paths in done.fetched.items()}
        facts = {"fetched": fetched, "here": done.here, "by_hand": done.by_hand, "failed": done.failed}
        _print_json({"root": str(root), **facts})
    else:
        print(f"fetched {len(done.fetched)}, here before {len(done.here)}, by hand {len(done.by_hand)}")
    if done.failed or alone:
        raise DataError("\n".join([*done.failed, *alone]))


@app.command()
def prepare(
    names: Names,
    root: Root = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of prepared data; MP2_CACHE or ~/.cache/mp2/data by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Base, tokenizer folder or hub name; the shipped model by default."),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a window, prompt slots included; the model's by default.")
    ] = None,
    reserve: Annotated[int, typer.Option(help="Tokens of a window kept for prompt slots.", min=0)] = 0,
    splits: Annotated[
        str | None, typer.Option(help="Splits, such as train,dev; all that a task has by default.")
    ] = None,
    max_bad: Annotated[
        float, typer.Option(help="Share of rows that may be unusable, 0.02 for 2 %.", min=0, max=1)
    ] = 0.02,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    json_: Json = False,
) -> None:
    """Read, check, take out leaks, encode once into a cache, and report what became of the rows."""
    from mp2.data.cache import default_cache
    from mp2.data.prepare import prepare_suites
    from mp2.data.report import report_table

    folder = cache or default_cache()
    prepared = prepare_suites(
        names,
        _root(root),
        _encoder(model, length, reserve),
        folder,
        splits=splits.replace(" ", "").split(",") if splits else None,
        max_bad=max_bad,
        workers=workers,
    )
    reports = [report for task in prepared.values() for report in task.reports.values()]
    if json_:
        _print_json({"cache": str(folder), "splits": [report.as_dict() for report in reports]})
        return
    print(report_table(reports))
    rows, seconds = sum(report.kept for report in reports), sum(report.seconds for report in reports)
    print(f"\n{rows:,} rows of {len(prepared)} tasks in {folder} (prepared in {seconds:.0f} s)")


@app.command()
def preview(
    name: Annotated[str, typer.Argument(help="Task of the catalogue, or a task file with a data section.")],
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="Split; the task's first by default.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 3,
    seed: Annotated[
        int | None, typer.Option(help="Pick at random with this seed, not the first rows.")
    ] = None,
    verbaliser: Annotated[str, typer.Option(help="Wording of the task, such as released.")] = "default",
    json_: Json = False,
) -> None:
    """Show rows as the model reads them, the right answer between 【 and 】."""
    from mp2.data.preview import marked, pick_examples
    from mp2.data.sources import layout
    from mp2.tasks import catalogue

    task, folder = catalogue.find(name).verbalised(verbaliser), _root(root)
    chosen = split or next(iter(layout(task, folder).splits))
    picked = pick_examples(task, chosen, folder, rows, seed=seed)
    if json_:
        shown = [{"where": str(where), "text": marked(example)} for where, example in picked]
        _print_json({"task": task.name, "split": chosen, "rows": shown})
        return
    for where, example in picked:
        print(f"{task.name}/{chosen}  {where}\n{marked(example)}\n")


@app.command()
def leaks(
    root: Root = None,
    suite: Annotated[
        list[str], typer.Option(help="Suites, tasks or task files to compare; all of the paper's by default.")
    ] = PAPER,
    json_: Json = False,
) -> None:
    """Print which splits share texts, before anything is removed."""
    from dataclasses import asdict

    from mp2.data.overlaps import overlap_table, overlaps
    from mp2.data.prepare import at_hand

    folder = _root(root)
    tasks, absent = at_hand(suite, folder)
    _tell_absent(absent)
    found = overlaps(tasks, folder, on_split=lambda name, rows: _say(f"{name}: {rows:,} rows"))
    if json_:
        _print_json({"root": str(folder), "overlaps": [asdict(overlap) for overlap in found]})
        return
    print(overlap_table(found))


@app.command()
def stats(root: Root = None, json_: Json = False) -> None:
    """Count the rows at hand and print them beside the paper's Tables 8 and 2 (Markdown)."""
    from mp2.data.sizes import count_rows, table_2, table_8
    from mp2.tasks import catalogue

    folder = _root(root)
    names = dict.fromkeys(name for suite in PAPER for name in catalogue.suite(suite))
    sizes = count_rows([catalogue.get(name) for name in names], folder, on_task=_say)
    if json_:
        _print_json({"root": str(folder), "tasks": [item.as_dict() for item in sizes]})
        return
    by_name = {item.task.name: item for item in sizes}
    downstream = [by_name[name] for suite in PAPER[1:] for name in catalogue.suite(suite)]
    print(f"## Pre-training tasks (paper, Table 8)\n\n{table_8(sizes)}\n")
    print(f"## Downstream tasks (paper, Table 2)\n\n{table_2(downstream)}")


def _encoder(model: str | None, length: int | None, reserve: int) -> Encoder:
    """The text encoder of a model, or of a folder that holds a tokenizer only."""
    from mp2.data.encode import Encoder
    from mp2.errors import ConfigError
    from mp2.model.backbone import load_tokenizer
    from mp2.model.checkpoint import load_base

    if length is not None and not 32 <= length - reserve <= length:
        raise ConfigError(f"--length {length} --reserve {reserve}: expected at least 32 tokens for the text")
    folder = Path(model or "")
    bare = folder.is_dir() and not any((folder / name).exists() for name in ("mp2.json", "config.json"))
    if model is None or not bare:
        encoder: Encoder = load_base(model).encoder(reserve, length)
        return encoder
    return Encoder(load_tokenizer(model), length or 512, reserve=reserve)


def _root(root: Path | None, *, absent: bool = False) -> Path:
    from mp2.errors import ConfigError, DataError

    if root is None:
        raise ConfigError("name the folder of the public data sets with --root or MP2_DATA")
    if not root.is_dir() and (root.exists() or not absent):
        raise DataError(f"{root}: no such folder of data sets")
    return root


def _tell_absent(lines: list[str]) -> None:
    for line in lines:
        _say(f"not here: {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))
