"""From a catalogue task to the rows of its splits: which files are there and who gets which row.

Interprets the ``data:`` section of a task file. Splits of one layout are disjoint by a hash of the group key,
which needs no second pass and gives the same parts on every machine. Rendering, checks and caches come later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from mp2.data.readers import OnBad, OnLeftOut, Row, Rows, read_rows
from mp2.errors import DataError, Where, nearest
from mp2.tasks import catalogue
from mp2.tasks.source import DataSource, FileSource, Layout, SplitSource
from mp2.tasks.spec import TaskSpec


def missing(task: TaskSpec, root: Path) -> str | None:
    """One line that says what to put where, or None if the task's rows are there."""
    if task.data is None:
        return f"{task.name}: the task file says nothing of data files"
    if _complete(task.data, root) is not None:
        return None
    hub = task.data.hub
    absent = [
        " or ".join(_names_by_hand(task.data, name))
        for name in _names(task.data.layouts[0])
        if _locate(task.data, name, root) is None
    ]
    by_hand = f"put {', '.join(absent)} into {folder(task, root)}; from {task.data.source}"
    if on_hub(task, root):
        known = task.name in catalogue.names()
        command = f"'mp2 data fetch {task.name}'" if known else "'mp2 data fetch' and its task file"
        return f"{task.name}: fetch it with {command}, or {by_hand}"
    return f"{task.name}: {by_hand}" + (f" (hub: {hub.id})" if hub else "")


def _names_by_hand(data: DataSource, name: str) -> list[str]:
    """Names of a file as carriers publish it, without those that only a fetch gives, if there are any."""
    paths = [path for file in data.files[name] for path in file.path]
    hub = data.hub.files if data.hub else {}
    return [path for path in paths if PurePosixPath(hub.get(path, path)).name == path] or paths


def on_hub(task: TaskSpec, root: Path) -> dict[str, str]:
    """Files that would make the task's rows whole, or more nearly so, and are to be had from the hub.

    Returns:
        Name below :func:`folder` -> name on the hub; empty where nothing better than what is here can be had.
    """
    if task.data is None or task.data.hub is None:
        return {}
    hub = task.data.hub.files
    for item in task.data.layouts:
        absent = [name for name in _names(item) if _locate(task.data, name, root) is None]
        offers = [
            next((path for file in task.data.files[name] for path in file.path if path in hub), None)
            for name in absent
        ]
        if None not in offers:
            return {path: hub[path] for path in offers if path is not None}
    return {}


def folder(task: TaskSpec, root: Path) -> Path:
    """Where the task's files lie, or should lie.

    Raises:
        DataError: The task file says nothing of data files.
    """
    names = _data(task).folder
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def layout(task: TaskSpec, root: Path) -> Layout:
    """The first layout of which all files are there.

    Raises:
        DataError: No layout is complete; the message says what to put where.
    """
    found = _complete(task.data, root) if task.data is not None else None
    if found is None:
        raise DataError(missing(task, root) or f"{task.name}: no data")
    return found


def files(task: TaskSpec, root: Path) -> tuple[Path, ...]:
    """The files that the task's splits are read from, in the order of the layout."""
    data = _data(task)
    located = (_locate(data, name, root) for name in _names(layout(task, root)))
    return tuple(dict.fromkeys(place[0] for place in located if place is not None))


def read_split(
    task: TaskSpec,
    split: str,
    root: Path,
    *,
    on_bad: OnBad | None = None,
    on_left_out: OnLeftOut | None = None,
) -> Rows:
    """Rows of one split, streamed.

    Args:
        task: A catalogue task, or one with a ``data:`` section of its own.
        split: ``train``, ``dev``, ``pool`` or ``test``.
        root: Folder that holds the data sets' folders.
        on_bad: Is given each row that cannot be read; without it the error is raised. A row whose split
            cannot be told is one of every split that its file has a part in.
        on_left_out: Is given the reason and the place of each row that the task file leaves out on purpose.

    Raises:
        DataError: The data are not there, the split is unknown, or a file or row cannot be read.
    """
    data, splits = _data(task), layout(task, root).splits
    source = next((item for name, item in splits.items() if name == split), None)
    if source is None:
        raise DataError(f"task {task.name}: no split {split!r}; {nearest(split, splits)}")
    ignore = on_bad and (lambda error: None)  # a bad row counts in the splits that its file is read for
    excluded = {
        _digest(_inputs(task, row))
        for name in source.exclude
        for _, row in _file_rows(data, name, root, ignore)
    }
    rows = chain.from_iterable(_file_rows(data, name, root, on_bad, on_left_out) for name in source.files)
    return _select(task, source, excluded, rows, on_bad, on_left_out)


def group_key(task: TaskSpec, row: Row) -> str:
    """What rows of one document share: the ``group_by`` columns, or the row's inputs."""
    if task.data is None or not task.data.group_by:
        return _inputs(task, row)
    return "\x1f".join(str(row.get(column, "")) for column in task.data.group_by)


def position(key: str) -> float:
    """Place of a key in [0, 1): a hash of its text without white space, the same on every machine."""
    return int.from_bytes(_digest(key), "big") / 2**64


def _select(
    task: TaskSpec,
    source: SplitSource,
    excluded: set[bytes],
    rows: Rows,
    on_bad: OnBad | None,
    on_left_out: OnLeftOut | None,
) -> Rows:
    leave = on_left_out or (lambda reason, where: None)
    low, high = source.fraction
    inputs = [task.column(field) for field in task.template_fields]
    shared = (task.data.group_by if task.data else ()) or inputs
    seen: set[bytes] = set()

    def has(columns: Iterable[str], row: Row, where: Where) -> bool:
        """Whether a row can be told from others by these columns; one that lacks any is bad."""
        absent = next((column for column in columns if column not in row), None)
        if absent is None:
            return True
        error = DataError(f"{where}: column {absent!r} is missing; {nearest(absent, row)}")
        if on_bad is None:
            raise error
        on_bad(error)
        return False

    for where, row in rows:
        if (low, high) != (0.0, 1.0):
            if not has(shared, row, where):
                continue
            if not low <= position(group_key(task, row)) < high:
                continue
        if source.exclude or source.distinct:
            if not has(inputs, row, where):  # rows without their texts would all be the same
                continue
            digest = _digest(_inputs(task, row))
            if digest in excluded:
                leave(f"in {' or '.join(source.exclude)}", where)
                continue
            if source.distinct:
                if digest in seen:
                    leave("repeated", where)
                    continue
                seen.add(digest)
        yield where, row


def _file_rows(
    data: DataSource,
    name: str,
    root: Path,
    on_bad: OnBad | None = None,
    on_left_out: OnLeftOut | None = None,
) -> Rows:
    place = _locate(data, name, root)
    if place is None:
        raise DataError(f"{root / data.folder[0]}: the file {name!r} is not there")
    return read_rows(place[0], place[1], on_bad=on_bad, on_left_out=on_left_out)


def _inputs(task: TaskSpec, row: Row) -> str:
    return "\x1f".join(str(row.get(task.column(field), "")) for field in task.template_fields)


def _digest(text: str) -> bytes:
    return hashlib.blake2b("".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _data(task: TaskSpec) -> DataSource:
    if task.data is None:
        raise DataError(f"{task.name}: the task file says nothing of data files")
    return task.data


def _names(layout: Layout) -> Iterator[str]:
    """Names of the files of a layout, each once, in order of the splits."""
    named = (name for split in layout.splits.values() for name in (*split.files, *split.exclude))
    return iter(dict.fromkeys(named))


def _complete(data: DataSource, root: Path) -> Layout | None:
    return next(
        (item for item in data.layouts if all(_locate(data, name, root) for name in _names(item))), None
    )


def _locate(data: DataSource, name: str, root: Path) -> tuple[Path, FileSource] | None:
    """The first of a file's alternatives that exists, plain or gzipped."""
    for source in data.files[name]:
        for folder in data.folder:
            for path in source.path:
                for candidate in (root / folder / path, root / folder / f"{path}.gz"):
                    if candidate.exists():
                        return candidate, source
    return None
