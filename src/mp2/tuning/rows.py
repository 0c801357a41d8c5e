"""A user's own file as labelled examples: the task given or inferred, a part held out for dev."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mp2.data.readers import read_table
from mp2.errors import DataError, TaskError, Where
from mp2.tasks import catalogue
from mp2.tasks.infer import infer_task
from mp2.tasks.render import MRCExample, blank, render
from mp2.tasks.spec import TaskSpec


def plain_rows(path: Path, task: TaskSpec) -> list[tuple[Where, dict[str, Any]]]:
    """Rows of a user's file that ask for an answer, each with its place.

    Raises:
        DataError: The file cannot be read.
        TaskError: A row does not fit the task or has no text, with its line.
    """
    located = list(read_table(path))
    _check_texts(task, located, "answer")
    return located


def labelled_rows(path: Path, task: TaskSpec | str | None) -> tuple[TaskSpec, list[MRCExample]]:
    """Read and render a user's labelled file.

    Args:
        path: CSV, TSV, JSON or JSONL.
        task: A task, a task file, a catalogue name, or None to infer it from the columns.

    Raises:
        DataError: The file cannot be read.
        TaskError: A row does not fit the task or has no text, with its line.
    """
    located = list(read_table(path))
    if isinstance(task, str):
        task = catalogue.find(task)
    if task is None:
        try:
            task = infer_task([row for _, row in located], path.stem)
        except TaskError as error:
            raise TaskError(f"{path}: {error}") from error
    _check_texts(task, located, "learn from it")
    return task, [render(task, row, where=where) for where, row in located]


def _check_texts(task: TaskSpec, located: Sequence[tuple[Where, dict[str, Any]]], purpose: str) -> None:
    for where, row in located:
        if blank(task, render(task, row, where=where, labelled=False)):
            raise TaskError(f"{where}: its text is empty, and there is nothing to {purpose}")


def shared(train: Sequence[MRCExample], dev: Sequence[MRCExample]) -> int:
    """How many dev rows ask what a train row asks."""
    learned = set(map(_asked, train))
    return sum(_asked(example) in learned for example in dev)


def _asked(example: MRCExample) -> tuple[Any, ...]:
    return example.segments, example.options


def hold_out(
    examples: Sequence[MRCExample], share: float, seed: int, path: Path | str = "rows"
) -> tuple[list[MRCExample], list[MRCExample]]:
    """Split rows into train and dev, label by label, at least one of each label on both sides.

    Rows of one text stay on one side, and so do questions about one text where there are several texts: dev
    would else ask for what was learned by heart.

    Raises:
        DataError: The share is no share, or a label has a single example.
    """
    if not 0 < share < 1:
        raise DataError(f"share of dev rows: expected a value between 0 and 1, got {share}")
    texts: dict[Any, list[int]] = {}
    by_context = len({example.context for example in examples}) > 1  # where answers are options it is ""
    for index, example in enumerate(examples):
        key = example.context if by_context else _asked(example)
        texts.setdefault(key, []).append(index)
    # an index says what a row means only where all rows have the same options
    labels = len({example.options for example in examples}) == 1
    groups: dict[Any, list[list[int]]] = {}
    for members in texts.values():
        groups.setdefault(examples[members[0]].answer if labels else None, []).append(members)
    dev: set[int] = set()
    rng = random.Random(seed)
    for answer, members_of in groups.items():
        if len(members_of) < 2:
            name = "the task" if answer is None else f"label {examples[0].options[answer]!r}"
            raise DataError(
                f"{path}: {name} has one example only, or one text again and again; tuning needs at least 2"
                " of each (one to learn from, one to check), 8 or more are better"
            )
        rng.shuffle(members_of)
        wanted, taken = max(1, round(share * sum(map(len, members_of)))), 0
        for members in members_of[:-1]:
            if taken < wanted:
                dev.update(members)
                taken += len(members)
    return (
        [example for index, example in enumerate(examples) if index not in dev],
        [example for index, example in enumerate(examples) if index in dev],
    )
