"""No row of a downstream pool or test set in pre-training, no row of a test set in its own training split.

Decides which splits are protected from which, and finds the rows of the lower side: across tasks the
upstream row goes; within a task the order is test, pool, dev, train. What "the same" means is said in
``mp2.data.duplicates``; the rows are taken out by ``mp2.data.prepare``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mp2.data.cache import built_once, content_key, file_hashes
from mp2.data.duplicates import RULES, Hashes, RowKeys, found_in, row_keys
from mp2.data.readers import OnLeftOut
from mp2.data.sources import files, layout, read_split
from mp2.errors import Mp2Error, TaskError, Where
from mp2.tasks.render import MRCExample, Row, render
from mp2.tasks.source import Split
from mp2.tasks.spec import TaskSpec

CHUNK = 1024
PRIORITY: tuple[Split, ...] = ("test", "pool", "dev", "train")
PROTECTED: tuple[Split, ...] = ("test", "pool")
UPSTREAM: tuple[Split, ...] = ("train", "dev")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chunk of rows that could be rendered, with their places."""

    places: list[Where]
    rows: list[Row]
    examples: list[MRCExample]


def rendered_chunks(
    task: TaskSpec,
    split: str,
    root: Path,
    on_bad: Callable[[Mp2Error], None] | None = None,
    on_left_out: OnLeftOut | None = None,
) -> Iterator[Rendered]:
    """Rows of a split in chunks; memory is one chunk.

    Args:
        task: The task.
        split: The split.
        root: Folder of the data sets.
        on_bad: Is given the error of each row that cannot be read or rendered; such rows are left out.
        on_left_out: Is given the reason and the place of each row that the task file leaves out on purpose.
    """
    report = on_bad or (lambda _: None)
    rows = read_split(task, split, root, on_bad=report, on_left_out=on_left_out)
    while chunk := list(islice(rows, CHUNK)):
        found = Rendered([], [], [])
        for where, row in chunk:
            try:
                example = render(task, row, where=where)
            except TaskError as error:
                report(error)
                continue
            found.places.append(where)
            found.rows.append(row)
            found.examples.append(example)
        yield found


@dataclass(frozen=True, slots=True)
class KeySet:
    """Sorted distinct keys of one split; see :class:`mp2.data.duplicates.RowKeys`."""

    identity: Hashes
    text: Hashes
    shingle: Hashes


def key_set(task: TaskSpec, split: str, root: Path, cache_dir: Path) -> KeySet:
    """Keys of a split, made once and kept in the cache."""
    folder = cache_dir / task.name / f"keys-{split}-{key_set_key(task, split, root, cache_dir)}"
    with built_once(folder) as aside:
        if aside is not None:
            chunks = [row_keys(chunk.examples) for chunk in rendered_chunks(task, split, root)]
            for name in KeySet.__slots__:
                parts = [np.unique(getattr(keys, name)) for keys in chunks]
                joined = np.concatenate(parts) if parts else np.empty(0, np.uint64)
                np.save(aside / f"{name}.npy", np.unique(joined))
    return KeySet(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in KeySet.__slots__))


def key_set_key(task: TaskSpec, split: str, root: Path, cache_dir: Path) -> str:
    """Hash of everything a split's keys depend on."""
    hashes = file_hashes(files(task, root), cache_dir)
    return content_key("keys", task.model_dump(mode="json"), split, hashes, RULES.as_dict())


class KnownTexts:
    """Texts that must not occur in what is being prepared, each with the split it comes from.

    Args:
        sets: Names (``task/split``) and keys of the protected splits; the first that has a text owns it.
    """

    def __init__(self, sets: Sequence[tuple[str, KeySet]]) -> None:
        self.names = [name for name, _ in sets]
        self._identity = _owned([keys.identity for _, keys in sets])
        self._text = _owned([keys.text for _, keys in sets])
        self._shingle = _owned([keys.shingle for _, keys in sets])

    def find(self, keys: RowKeys, *, across: bool) -> list[str | None]:
        """For each row, why it counts as known, such as ``in chnsent/test``; None when it does not.

        Args:
            keys: Keys of n rows.
            across: The known texts are of other tasks: then a long sentence of a pair counts by itself.
                Within a task only the whole pair does, since premises recur there by design.
        """
        owner = np.full(len(keys), -1)
        if across:
            _mark(owner, keys.text_row, _lookup(self._text, keys.text))
        else:
            _mark(owner, np.arange(len(keys)), _lookup(self._identity, keys.identity))
        near = self._near(keys)
        if not across:
            near[keys.several] = -1
        return [
            f"in {self.names[exact]}"
            if exact >= 0
            else (f"almost in {self.names[close]}" if close >= 0 else None)
            for exact, close in zip(owner.tolist(), near.tolist(), strict=True)
        ]

    def _near(self, keys: RowKeys) -> NDArray[np.int64]:
        """Owner of the text that a row is nearly a copy of, or -1."""
        owner = np.full(len(keys), -1)
        found = _lookup(self._shingle, keys.shingle)
        hits = np.bincount(keys.shingle_row[found >= 0], minlength=len(keys))
        kept = np.bincount(keys.shingle_row, minlength=len(keys))
        _mark(owner, keys.shingle_row, found)
        owner[(hits < RULES.least) | (hits < RULES.share * kept)] = -1
        return owner


def _owned(parts: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.int64]]:
    """Sorted distinct hashes and the first part each is in."""
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    values, first = np.unique(np.concatenate(parts), return_index=True)
    return values, np.repeat(np.arange(len(parts)), [len(part) for part in parts])[first]


def _lookup(known: tuple[Hashes, NDArray[np.int64]], values: Hashes) -> NDArray[np.int64]:
    """Owner of each value, or -1."""
    hashes, owners = known
    found = np.full(len(values), -1)
    inside = found_in(values, hashes)
    found[inside] = owners[np.searchsorted(hashes, values[inside])]
    return found


def _mark(owner: NDArray[np.int64], rows: NDArray[np.int64], found: NDArray[np.int64]) -> None:
    """Write what was found for a row's keys to the row; the row's first find wins."""
    hits = np.flatnonzero(found >= 0)[::-1]
    owner[rows[hits]] = found[hits]


def known_within(task: TaskSpec, split: str, root: Path, cache_dir: Path) -> KnownTexts:
    """Texts of the task's splits that come before ``split`` in the order test, pool, dev, train."""
    offered = layout(task, root).splits
    before = PRIORITY[: PRIORITY.index(split)] if split in PRIORITY else ()
    return KnownTexts([(name, key_set(task, name, root, cache_dir)) for name in before if name in offered])


def known_downstream(tasks: Iterable[TaskSpec], root: Path, cache_dir: Path) -> KnownTexts:
    """Texts of the pools and test sets of downstream tasks."""
    return KnownTexts(
        [
            (f"{task.name}/{split}", key_set(task, split, root, cache_dir))
            for task, split in protected_splits(tasks, root)
        ]
    )


def protected_splits(tasks: Iterable[TaskSpec], root: Path) -> list[tuple[TaskSpec, Split]]:
    """Pools and test sets of tasks, tests first."""
    found = [(task, layout(task, root).splits) for task in tasks]
    return [(task, split) for split in PROTECTED for task, offered in found if split in offered]
