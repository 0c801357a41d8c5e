"""The paper's own numbers (Tables 1, 3, 4 and 5), read from the package's data."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

Row = dict[str, str]


@cache
def paper_table(number: int) -> tuple[Row, ...]:
    """Rows of a table of the paper, long form, in the paper's order.

    Args:
        number: 1, 3, 4 or 5.
    """
    path = files("mp2.evaluation") / "paper" / f"table{number}.csv"
    return tuple(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the paper's Table 3.

    Attributes:
        paradigm: ``GD`` or ``BB``.
        name: Name in the paper.
        method: Our method of the same kind; empty if there is none (CPM-2).
        parameters: Tuned parameters, as printed.
        scores: Task -> (mean, std) in percent; ``average`` is the printed average, without std.
    """

    paradigm: str
    name: str
    method: str
    parameters: str
    scores: dict[str, tuple[float, float | None]]


@cache
def published(suite: str) -> tuple[Published, ...]:
    """Rows of Table 3 for one suite, in the paper's order."""
    rows: dict[tuple[str, str], Published] = {}
    for row in paper_table(3):
        if row["suite"] != suite:
            continue
        place = (row["paradigm"], row["name"])
        if place not in rows:
            rows[place] = Published(*place, row["method"], row["parameters"], {})
        std = float(row["std"]) if row["std"] else None
        rows[place].scores[row["task"]] = (float(row["mean"]), std)
    return tuple(rows.values())
