"""``mp2 tasks``: the catalogue, one task in full, and a check of one's own task files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mp2.cli.options import Json

if TYPE_CHECKING:
    from mp2.tasks.spec import TaskSpec

app = typer.Typer(no_args_is_help=True, help="The catalogue of tasks, and a check of one's own task files.")

Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the data sets, to see which are there.", envvar="MP2_DATA"),
]


@app.command("list")
def list_(
    root: Root = None,
    suite: Annotated[
        str | None, typer.Option(help="One suite, such as unseen-task-7; the paper's 46 tasks when absent.")
    ] = None,
    json_: Json = False,
) -> None:
    """List tasks: family, labels, suites, and whether their data are here."""
    from mp2.tasks import catalogue

    names = [suite] if suite else ["pretrain-38", "unseen-task-7", "iflytek-119"]
    tasks = [catalogue.get(name) for each in names for name in catalogue.suite(each)]
    rows = [_row(task, root) for task in tasks]
    if json_:
        print(json.dumps({"root": str(root) if root else None, "tasks": rows}, ensure_ascii=False))
        return
    print(f"{'task':20} {'family':15} {'labels':>6}  {'suites':30} {'here' if root else ''}".rstrip())
    for row in rows:
        labels = row["labels"] or "-"
        suites = ", ".join(row["suites"])
        print(f"{row['name']:20} {row['family']:15} {labels:>6}  {suites:30} {row['here'] or ''}".rstrip())
    _foot(rows, root, suite)


def _row(task: TaskSpec, root: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": task.name,
        "family": task.family,
        "labels": len(task.labels),
        "suites": list(task.data.suites) if task.data else [],
        "here": None,
        "fetch": [],
        "missing": None,
    }
    if root is not None:
        from mp2.data.sources import layout, missing, on_hub

        row["fetch"], row["missing"] = list(on_hub(task, root)), missing(task, root)
        if row["missing"]:
            row["here"] = "can be fetched" if row["fetch"] else "by hand"
        else:
            row["here"] = layout(task, root).note or "yes"
            row["here"] += "; the rest can be fetched" if row["fetch"] else ""
    return row


def _foot(rows: list[dict[str, Any]], root: Path | None, suite: str | None) -> None:
    """After the table: how much of it is here, and what to put where."""
    if root is None:
        print(f"\n{len(rows)} tasks; --root DIR (or MP2_DATA) says which data are there")
        return
    absent = [row for row in rows if row["missing"]]
    fetchable = sum(bool(row["fetch"]) for row in absent)
    ways = f"; {fetchable} can be fetched, {len(absent) - fetchable} by hand" if absent else ""
    print(f"\n{suite or 'all'}: {len(rows) - len(absent)} of {len(rows)} here, under {root}{ways}")
    for row in absent:
        print(f"  {row['missing']}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name in the catalogue, or a task file.")],
    root: Root = None,
    json_: Json = False,
) -> None:
    """Print a task in full, as a task file."""
    from mp2.tasks import catalogue
    from mp2.tasks.infer import dump_task

    task = catalogue.find(name)
    if json_:
        print(json.dumps(task.model_dump(mode="json", exclude_none=True), ensure_ascii=False))
        return
    if root is not None:
        row = _row(task, root)
        print(f"# here: {row['here']}" + (f" ({row['missing']})" if row["missing"] else ""))
    print(dump_task(task), end="")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Task files.")],
    rows: Annotated[
        Path | None, typer.Option(help="A table whose every row must fit each of the tasks.")
    ] = None,
) -> None:
    """Check task files; say for each mistake its file, its line and the nearest valid name."""
    from mp2.errors import Mp2Error
    from mp2.tasks.spec import load_task

    failed = False
    for file in files:
        try:
            task = load_task(file)
            fitting = f", {_count_fitting(task, rows)} rows of {rows} fit" if rows is not None else ""
        except Mp2Error as error:
            failed = True
            print(error, file=sys.stderr)
            continue
        labels = f", {len(task.labels)} labels" if task.labels else ""
        print(f"{file}: task {task.name}, {task.family}{labels}{fitting}")
    if failed:
        raise typer.Exit(2)


def _count_fitting(task: TaskSpec, rows: Path) -> int:
    from mp2.tuning.rows import labelled_rows

    return len(labelled_rows(rows, task)[1])
