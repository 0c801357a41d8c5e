"""Which splits share texts: the matrix of overlaps, counted on the files as they are.

Decides nothing and removes nothing; it shows what ``mp2.data.leaks`` will act on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mp2.data.duplicates import Hashes, found_in, row_keys
from mp2.data.leaks import rendered_chunks
from mp2.data.sources import layout
from mp2.tasks.spec import TaskSpec


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two splits (``task/split``) share.

    Attributes:
        first, second: The splits.
        first_rows: Rows of the first that are in the second.
        second_rows: Rows of the second that are in the first.
        first_size, second_size: All their rows.
    """

    first: str
    second: str
    first_rows: int
    second_rows: int
    first_size: int
    second_size: int


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys of a split: entry i is of row ``row[i]``; ``identity`` entries are of the whole row."""

    size: int
    key: Hashes
    row: NDArray[np.int64]
    identity: NDArray[np.bool_]

    def only(self, chosen: NDArray[np.bool_]) -> _Keys:
        return _Keys(self.size, self.key[chosen], self.row[chosen], self.identity[chosen])

    def rows_in(self, other: _Keys) -> int:
        return len(np.unique(self.row[found_in(self.key, np.unique(other.key))]))


def overlaps(
    tasks: Sequence[TaskSpec],
    root: Path,
    *,
    on_split: Callable[[str, int], None] = lambda name, rows: None,
) -> list[Overlap]:
    """All pairs of splits that share texts, largest overlap first.

    Two splits of one task are compared by whole rows, splits of two tasks also by long single sentences.
    Rows that cannot be rendered are left out.

    Args:
        tasks: Tasks whose data are there.
        root: Folder of the data sets.
        on_split: Is given the name and the rows of each split when it has been read.

    Raises:
        DataError: A file cannot be read.
    """
    splits: dict[tuple[str, str], _Keys] = {}
    for task in tasks:
        for split in layout(task, root).splits:
            keys = splits[task.name, split] = _split_keys(task, split, root)
            on_split(f"{task.name}/{split}", keys.size)
    # most keys are in one split only and need no comparison
    distinct = np.concatenate([np.empty(0, np.uint64), *(np.unique(keys.key) for keys in splits.values())])
    values, counts = np.unique(distinct, return_counts=True)
    shared = values[counts > 1]
    small = {name: keys.only(found_in(keys.key, shared)) for name, keys in splits.items()}
    found = []
    for (first, one), (second, two) in combinations(small.items(), 2):
        if first[0] == second[0]:
            one, two = one.only(one.identity), two.only(two.identity)
        if len(one.key) and len(two.key) and (rows := one.rows_in(two)):
            names = "/".join(first), "/".join(second)
            found.append(Overlap(*names, rows, two.rows_in(one), one.size, two.size))
    return sorted(found, key=lambda overlap: -max(overlap.first_rows, overlap.second_rows))


def _split_keys(task: TaskSpec, split: str, root: Path) -> _Keys:
    keys: list[Hashes] = []
    rows: list[NDArray[np.int64]] = []
    identity: list[NDArray[np.bool_]] = []
    size = 0
    for chunk in rendered_chunks(task, split, root):
        found = row_keys(chunk.examples)
        keys.append(found.text)
        rows.append(found.text_row + size)
        identity.append(np.arange(len(found.text)) < len(found))
        size += len(found)
    if not keys:
        return _Keys(0, np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, bool))
    return _Keys(size, np.concatenate(keys), np.concatenate(rows), np.concatenate(identity))


def overlap_table(found: Sequence[Overlap]) -> str:
    """The overlaps as a Markdown table."""
    lines = [
        "| split | rows also in the other | split | rows also in the other |",
        "|---|---:|---|---:|",
    ]
    for o in found:
        one = f"{o.first_rows:,} of {o.first_size:,} ({100 * o.first_rows / o.first_size:.1f} %)"
        two = f"{o.second_rows:,} of {o.second_size:,} ({100 * o.second_rows / o.second_size:.1f} %)"
        lines.append(f"| {o.first} | {one} | {o.second} | {two} |")
    return "\n".join(lines)
