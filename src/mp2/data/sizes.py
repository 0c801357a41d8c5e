"""Sizes of the splits at hand beside those that the paper prints in its Tables 8 and 2.

Decides the shape of the two tables. Counts rows as files and layouts give them, before anything is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mp2.data.report import Tally
from mp2.data.sources import layout, missing, read_split
from mp2.tasks.source import SPLITS
from mp2.tasks.spec import TaskSpec


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of a task's splits.

    Attributes:
        task: The task.
        here: Whether its data are at hand.
        rows: Split -> rows.
        unreadable: Rows that could not be read.
        note: What is special about the layout in use.
    """

    task: TaskSpec
    here: bool
    rows: dict[str, int]
    unreadable: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The sizes as JSON values, with the paper's."""
        printed = self.task.paper.sizes if self.task.paper else {}
        return asdict(self) | {"task": self.task.name, "paper": dict(printed)}


def count_rows(
    tasks: Sequence[TaskSpec], root: Path, *, on_task: Callable[[str], None] = lambda name: None
) -> list[Sizes]:
    """Count the rows of all splits of tasks, in one streamed pass per split.

    Args:
        tasks: The tasks; one that is absent gets no counts.
        root: Folder of the data sets.
        on_task: Is given the name of each task when it has been counted.

    Raises:
        DataError: A file cannot be read.
    """
    found = []
    for task in tasks:
        if missing(task, root) is not None:
            found.append(Sizes(task, False, {}))
            continue
        chosen, bad = layout(task, root), Tally()
        rows: dict[str, int] = {
            split: sum(1 for _ in read_split(task, split, root, on_bad=bad.add))
            for split in SPLITS
            if split in chosen.splits
        }
        found.append(Sizes(task, True, rows, bad.count, chosen.note))
        on_task(task.name)
    return found


def table_8(sizes: Sequence[Sizes]) -> str:
    """The pre-training tasks in the paper's order: printed sizes, sizes at hand (Markdown)."""
    lines = [
        "| id | task | type, domain | labels | paper train / dev / test | here train / dev / pool / test |"
        " note |",
        "|---:|---|---|---:|---|---|---|",
    ]
    for item in sizes:
        facts = item.task.paper
        if facts is None or facts.id is None:
            continue
        printed = " / ".join(facts.sizes.get(split, "-") for split in ("train", "dev", "test"))
        lines.append(
            f"| {facts.id} | {item.task.name} | {facts.type}, {facts.domain} | {len(item.task.labels) or '-'}"
            f" | {printed} | {_here(item, SPLITS)} | {item.note} |"
        )
    present = sum(item.here for item in sizes if item.task.paper and item.task.paper.id)
    return "\n".join([*lines, "", f"{present} of {len(lines) - 2} tasks are here."])


def table_2(sizes: Sequence[Sizes]) -> str:
    """The downstream tasks in the paper's order: printed test size, pool and test at hand (Markdown)."""
    lines = [
        "| group | task | labels | paper test | here pool / test | note |",
        "|---|---|---:|---|---|---|",
    ]
    for item in sizes:
        facts = item.task.paper
        if facts is None or facts.table2 is None:
            continue
        group = "unseen data" if facts.id else "unseen task"
        lines.append(
            f"| {group} | {item.task.name} | {len(item.task.labels) or '-'} | {facts.sizes.get('test', '-')}"
            f" | {_here(item, ('pool', 'test'))} | {item.note} |"
        )
    return "\n".join(lines)


def _here(item: Sizes, splits: Sequence[str]) -> str:
    if not item.here:
        return "not here"
    return " / ".join(f"{item.rows[split]:,}" if split in item.rows else "-" for split in splits)
