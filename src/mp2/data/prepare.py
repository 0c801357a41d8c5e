"""From raw files to encoded splits: read, render, check, take out leaks, encode once, cache.

Decides the order of these steps and what makes a prepared split stale. Rows stream through in chunks, so
memory does not grow with the files. Each step's own decisions are elsewhere: ``sources`` (which rows),
``render`` (what a row says), ``leaks`` (what goes), ``encode`` (tokens), ``store`` (the file), ``report``.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mp2.data.cache import built_once, content_key, file_hashes
from mp2.data.duplicates import RULES, HashSet, RowKeys, row_keys
from mp2.data.encode import Encoded, Encoder
from mp2.data.leaks import (
    UPSTREAM,
    KnownTexts,
    Rendered,
    key_set_key,
    known_downstream,
    known_within,
    protected_splits,
    rendered_chunks,
)
from mp2.data.progress import Bar, Progress
from mp2.data.report import SplitReport
from mp2.data.sources import files, group_key, layout, missing
from mp2.data.store import FORMAT, PreparedSplit, SplitWriter
from mp2.errors import DataError, TaskError, nearest
from mp2.runtime import write_json
from mp2.tasks import catalogue
from mp2.tasks.spec import TaskSpec

MAX_BAD = 0.02
DOWNSTREAM = ("unseen-", "iflytek-")  # suites that begin so are few-shot tasks
ROWS, REPORT = "rows.arrow", "report.json"


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task's prepared splits and their reports."""

    spec: TaskSpec
    splits: Mapping[str, PreparedSplit]
    reports: Mapping[str, SplitReport]

    def split(self, name: str) -> PreparedSplit:
        """One split.

        Raises:
            DataError: It was not prepared.
        """
        if name not in self.splits:
            raise DataError(f"{self.spec.name}: no prepared split {name!r}; {nearest(name, self.splits)}")
        return self.splits[name]


def prepare(
    tasks: Sequence[TaskSpec],
    root: Path,
    encoder: Encoder,
    cache_dir: Path,
    *,
    splits: Collection[str] | None = None,
    protect: Sequence[TaskSpec] | None = None,
    max_bad: float = MAX_BAD,
    workers: int = 1,
) -> dict[str, PreparedTask]:
    """Prepare tasks, or open what is already prepared.

    Rows of ``train`` and ``dev`` splits that are in a pool or test set of a protected task are taken out,
    and within each task a row stays only in the first of test, pool, dev and train. Copies within a split
    are taken out too, but test sets stay as published. Two processes may prepare the same at once.

    Args:
        tasks: Tasks whose data lie under ``root``.
        root: Folder of the data sets.
        encoder: Turns rendered rows into tokens.
        cache_dir: Folder of prepared data.
        splits: Which splits; every task must offer them. All that each task offers when None.
        protect: Downstream tasks to keep out of pre-training; those of the catalogue that are at hand
            when None.
        max_bad: Share of rows that may be unusable before a split is refused.
        workers: Processes, each preparing whole tasks.

    Returns:
        Task name -> prepared task, in the order given.

    Raises:
        DataError: Data are absent, a file cannot be read, a split is empty or has too many bad rows, or the
            cache cannot be written.
    """
    root, cache_dir = Path(root), Path(cache_dir)
    for task in tasks:
        if absent := missing(task, root):
            raise DataError(absent)
    guarded = downstream_at_hand(root) if protect is None else list(protect)
    wanted = [_splits(task, root, splits) for task in tasks]
    bar = Bar(sum(map(len, wanted)))
    job = Preparation(root, encoder, cache_dir, tuple(guarded), max_bad, bar)
    try:
        done = _all_tasks(job, tasks, wanted, workers)
    finally:
        bar.clear()
    return {task.name: prepared for task, prepared in zip(tasks, done, strict=True)}


def _all_tasks(
    job: Preparation, tasks: Sequence[TaskSpec], wanted: Sequence[Sequence[str]], workers: int
) -> list[PreparedTask]:
    """Prepare whole tasks, here or in processes of their own."""
    if workers <= 1 or len(tasks) <= 1:
        return [job.task(task, names) for task, names in zip(tasks, wanted, strict=True)]
    if any(name in UPSTREAM for names in wanted for name in names):
        job.downstream  # noqa: B018  # before the workers, who would wait for one another
    context = multiprocessing.get_context("spawn")
    done = []
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        for prepared in pool.map(replace(job, bar=Bar(0)).task, tasks, wanted):
            done.append(prepared)
            job.bar.step(len(prepared.splits))
    return done


def prepare_suites(
    names: Sequence[str],
    root: Path,
    encoder: Encoder,
    cache_dir: Path,
    *,
    splits: Collection[str] | None = None,
    max_bad: float = MAX_BAD,
    workers: int = 1,
) -> dict[str, PreparedTask]:
    """Prepare those members of suites (or single tasks) of the catalogue whose data are there.

    Absent members of a suite are told on stderr; an absent task that is named by itself is an error.
    Arguments and errors otherwise as for :func:`prepare`.
    """
    tasks, absent = at_hand(names, Path(root))
    for line in absent:
        print(f"not here: {line}", file=sys.stderr)
    return prepare(tasks, root, encoder, cache_dir, splits=splits, max_bad=max_bad, workers=workers)


def at_hand(names: Sequence[str], root: Path) -> tuple[list[TaskSpec], list[str]]:
    """Tasks of suites and single tasks whose data are there, each once, and a line per absent one.

    Raises:
        TaskError: A name is neither a suite nor a task, or two tasks have one name.
        DataError: A task named by itself is not there, or no member of the suites is.
    """
    tasks: dict[str, TaskSpec] = {}
    absent: dict[str, str] = {}
    for name in names:
        whole = name in catalogue.SUITES
        for task in catalogue.tasks_of(name):
            if tasks.get(task.name, task) != task:
                raise TaskError(f"{name}: another task is named {task.name!r}; rename one")
            line = missing(task, root)
            if line is None:
                tasks[task.name] = task
            elif whole:
                absent[task.name] = line
            else:
                raise DataError(line)
    if not tasks:
        raise DataError(f"{root} has no data of {', '.join(names)}:\n" + "\n".join(absent.values()))
    return list(tasks.values()), list(absent.values())


def downstream_at_hand(root: Path) -> list[TaskSpec]:
    """The catalogue's downstream tasks whose data are there."""
    suites = [name for name in catalogue.SUITES if name.startswith(DOWNSTREAM)]
    names = dict.fromkeys(name for suite in suites for name in catalogue.suite(suite))
    return [task for task in map(catalogue.get, names) if missing(task, root) is None]


def _splits(task: TaskSpec, root: Path, wanted: Collection[str] | None) -> list[str]:
    offered = layout(task, root).splits
    for name in wanted or ():
        if name not in offered:
            raise DataError(f"task {task.name} has no split {name!r}; {nearest(name, offered)}")
    return [name for name in offered if wanted is None or name in wanted]


@dataclass(frozen=True)
class Preparation:
    """What all splits of one call have in common; see :func:`prepare`."""

    root: Path
    encoder: Encoder
    cache_dir: Path
    protect: tuple[TaskSpec, ...]
    max_bad: float
    bar: Bar

    @cached_property
    def downstream(self) -> KnownTexts:
        """Texts of all protected tasks."""
        return known_downstream(self.protect, self.root, self.cache_dir)

    @cached_property
    def _protected_keys(self) -> dict[tuple[str, str], str]:
        """What the texts of each protected split depend on."""
        return {
            (task.name, split): key_set_key(task, split, self.root, self.cache_dir)
            for task, split in protected_splits(self.protect, self.root)
        }

    def others(self, task: TaskSpec) -> tuple[TaskSpec, ...]:
        """Protected tasks other than this one, whose own splits are compared by :func:`known_within`."""
        return tuple(other for other in self.protect if other.name != task.name)

    def known_across(self, task: TaskSpec) -> KnownTexts:
        """Texts that no upstream split of this task may have."""
        others = self.others(task)
        if len(others) == len(self.protect):
            return self.downstream
        return known_downstream(others, self.root, self.cache_dir)

    def task(self, task: TaskSpec, splits: Sequence[str]) -> PreparedTask:
        """Prepare splits of one task."""
        done = {name: self.split(task, name) for name in splits}
        return PreparedTask(
            task,
            {name: split for name, (split, _) in done.items()},
            {name: report for name, (_, report) in done.items()},
        )

    def split(self, task: TaskSpec, split: str) -> tuple[PreparedSplit, SplitReport]:
        """Prepare one split, or open it."""
        folder = self.cache_dir / task.name / f"{split}-{self._split_key(task, split)}"
        with built_once(folder) as aside:
            if aside is not None:
                self._build(task, split, aside)
        try:
            report = SplitReport.from_dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / REPORT}: damaged ({error}); remove {folder}") from error
        report.check(self.max_bad)
        self.bar.step()
        return PreparedSplit(folder / ROWS, task, f"{task.name}/{split}"), report

    def _split_key(self, task: TaskSpec, split: str) -> str:
        hashes = file_hashes(files(task, self.root), self.cache_dir)
        across = self._protected_keys.items() if split in UPSTREAM else ()
        known = [key for (name, _), key in across if name != task.name]
        spec = task.model_dump(mode="json")
        return content_key(FORMAT, spec, split, hashes, self.encoder.fingerprint, RULES.as_dict(), known)

    def _build(self, task: TaskSpec, split: str, folder: Path) -> None:
        begin = time.monotonic()
        report = SplitReport(task.name, split, [path.name for path in files(task, self.root)])
        progress = Progress(f"{task.name}/{split}", self.bar)
        remover = _Remover(self, task, split, report)
        with SplitWriter(folder / ROWS, task) as writer:
            for chunk in rendered_chunks(task, split, self.root, report.add_bad, report.leave_out):
                report.read += len(chunk.rows)
                keys = row_keys(chunk.examples)
                kept = remover.kept(keys, chunk)
                chosen = [(i, e) for i, e in self._encoded(chunk, kept, report) if e is not None]
                if chosen:
                    places = [i for i, _ in chosen]
                    writer.write(
                        [chunk.rows[i] for i in places],
                        [chunk.examples[i] for i in places],
                        [encoded for _, encoded in chosen],
                        _groups(task, chunk, keys)[places],
                    )
                report.kept += len(chosen)
                progress.show(report.read)
        report.check(self.max_bad)
        report.measure(PreparedSplit(folder / ROWS, task), self.encoder.room)
        report.seconds = round(time.monotonic() - begin, 2)
        write_json(folder / REPORT, report.as_dict())
        progress.end(report)

    def _encoded(
        self, chunk: Rendered, kept: Sequence[int], report: SplitReport
    ) -> Iterator[tuple[int, Encoded | None]]:
        """Encoded rows of a chunk; one that does not fit the model's window is counted as bad."""
        try:
            yield from zip(kept, self.encoder([chunk.examples[i] for i in kept]), strict=True)
        except TaskError:
            for i in kept:
                try:
                    yield i, self.encoder([chunk.examples[i]])[0]
                except TaskError as error:
                    report.read -= 1  # it was read already
                    report.add_bad(TaskError(f"{chunk.places[i]}: {error}"))


class _Remover:
    """Says which rows of a split stay, chunk by chunk."""

    def __init__(self, job: Preparation, task: TaskSpec, split: str, report: SplitReport) -> None:
        self.report, self.split = report, split
        self.within = known_within(task, split, job.root, job.cache_dir)
        self.across = job.known_across(task) if split in UPSTREAM else None
        self.seen = HashSet()

    def kept(self, keys: RowKeys, chunk: Rendered) -> list[int]:
        """Indices of the rows that stay; the others are counted with the reason."""
        fresh = self.seen.add(keys.whole)
        if self.split == "test":
            self.report.copies_kept += int((~fresh).sum())
            return list(range(len(keys)))
        within = self.within.find(keys, across=False)
        across = self.across.find(keys, across=True) if self.across else [None] * len(keys)
        kept = []
        for i, where in enumerate(chunk.places):
            reason = within[i] or across[i] or (None if fresh[i] else "a copy of an earlier row")
            if reason is None:
                kept.append(i)
            else:
                self.report.remove(reason, where)
        return kept


def _groups(task: TaskSpec, chunk: Rendered, keys: RowKeys) -> NDArray[np.uint64]:
    """Key of each row's document, or of its texts where no document is named."""
    if task.data is None or not task.data.group_by:
        return keys.identity
    numbers = [content_key(group_key(task, dict(row))) for row in chunk.rows]
    return np.array([int(number, 16) for number in numbers], dtype=np.uint64)
