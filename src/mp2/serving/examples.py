"""Uploaded examples: parsed, checked and split, never executed.

Decides what is wrong with an upload and says so row by row, before anything is tuned. The task comes from
the columns or from a task file that is sent along.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from mp2.data.encode import Encoder
from mp2.data.readers import read_table
from mp2.errors import DataError, Mp2Error, TaskError
from mp2.serving.schemas import OPTIONS, TEXT_CHARACTERS
from mp2.tasks.infer import dump_task, infer_task, unread_columns
from mp2.tasks.render import MRCExample, Segment, blank, render
from mp2.tasks.spec import TaskSpec, parse_task
from mp2.tuning.rows import hold_out

MOST_PROBLEMS = 50
MOST_LABELS = 200
DEPTH = 20
PREVIEW = 80
FEW = 8  # examples of a label under which results vary a lot from draw to draw


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one row, or with the whole upload (no row)."""

    message: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What works but should be known: a code with its numbers, and the same in words."""

    code: str
    message: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Checked:
    """An upload as it was understood.

    Attributes:
        task: The task, or None where it cannot be told.
        rows: Rows that can be used, as ``{column: value}``.
        examples: The same rows, rendered.
        problems: Why rows, or all of it, cannot be used.
        warnings: What works but should be known.
    """

    task: TaskSpec | None = None
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    examples: list[MRCExample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Notice] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from, rows that decide which moment is kept, and rows that nothing has seen."""

    train: Sequence[MRCExample]
    dev: Sequence[MRCExample]
    held_back: Sequence[MRCExample]


def check(
    name: str,
    rows: Sequence[Mapping[str, Any]] | None,
    upload: tuple[str, str] | None,
    task_file: str | None,
    *,
    most: int,
    encoder: Encoder,
) -> Checked:
    """Parse and check examples.

    Args:
        name: Name of the task.
        rows: Examples as rows, or None.
        upload: ``(format, content)`` of an uploaded file, or None.
        task_file: Text of a task file, or None to infer the task from the columns.
        most: Rows an upload may have.
        encoder: What will read them.
    """
    checked = Checked()
    try:
        located = _parse(*upload, checked, most) if upload else list(enumerate(rows or [], start=1))
        if not located:
            raise DataError("there are no examples")
        if len(located) > most:
            raise DataError(f"expected at most {most} examples, got {len(located)}")
        task = _task(name, [row for _, row in located], task_file)
        if len(task.labels) > MOST_LABELS:
            raise DataError(f"expected at most {MOST_LABELS} different labels, got {len(task.labels)}")
        encoder.check_labels(task.labels)
        checked.task = task
    except (Mp2Error, RecursionError) as error:
        checked.problems.insert(0, Problem(str(error) or "nested too deeply"))
        return checked
    kept: list[tuple[int, Mapping[str, Any], MRCExample]] = []
    for number, row in located:
        try:
            _check_sizes(row, f"row {number}")
            example = render(checked.task, row, where=f"row {number}")
            if blank(checked.task, example):
                raise TaskError(f"row {number}: its text is empty, and there is nothing to learn from it")
            kept.append((number, row, example))
        except TaskError as error:
            checked.problems.append(Problem(str(error), number))
    cut, found = 0, encoder.each([example for _, _, example in kept])
    for (number, row, example), encoded in zip(kept, found, strict=True):
        if isinstance(encoded, TaskError):
            checked.problems.append(Problem(f"row {number}: {encoded}", number))
        else:
            checked.rows.append(row)
            checked.examples.append(example)
            cut += encoded.cut
    checked.problems.sort(key=lambda problem: problem.row or 0)
    _warn(checked, cut, encoder.room, inferred=task_file is None)
    return checked


def split(examples: Sequence[MRCExample], held_back: float, seed: int) -> Split:
    """Split label by label; nothing is held back where that would leave a label too few for the other parts.

    Raises:
        DataError: A label has a single example.
    """
    if held_back > 0:
        rest, unseen = hold_out(examples, held_back, seed, "the upload")
        with contextlib.suppress(DataError):
            return Split(*hold_out(rest, 0.33, seed, "the upload"), unseen)
    return Split(*hold_out(examples, 0.33, seed, "the upload"), [])


def summary(checked: Checked, held_back: float, seed: int) -> dict[str, Any]:
    """What the check found, for the one who uploaded."""
    task, parts, problems = checked.task, None, list(checked.problems)
    if task is not None and checked.examples:
        try:
            parts = split(checked.examples, held_back, seed)
        except DataError as error:
            problems.append(Problem(str(error)))
    return {
        "usable": parts is not None,
        "task": describe(task) if task else None,
        "task_file": dump_task(task) if task else None,
        "rows": len(checked.examples),
        "preview": [_preview(task, row) for row in checked.rows] if task else [],
        "labels": [{"label": label, "rows": rows} for label, rows in _counts(checked.examples).items()],
        "split": _sizes(parts) if parts else None,
        "problems": [{"row": p.row, "message": p.message} for p in problems[:MOST_PROBLEMS]],
        "more_problems": max(0, len(problems) - MOST_PROBLEMS),
        "warnings": [{"code": n.code, "message": n.message, "values": n.values} for n in checked.warnings],
    }


def describe(task: TaskSpec) -> dict[str, Any]:
    """A task as the page and clients need it."""
    return {
        "name": task.name,
        "family": task.family,
        "labels": list(task.labels),
        "template": task.template,
        "fields": [{"field": name, "column": task.column(name)} for name in task.template_fields],
        "options": task.options if task.family == "choice" else None,
        "metric": task.metric,
        "no_answer": task.no_answer,
    }


def _preview(task: TaskSpec, row: Mapping[str, Any]) -> str:
    """The beginning of a row's text."""
    return " | ".join(str(row[task.column(name)]) for name in task.template_fields)[:PREVIEW]


def _sizes(parts: Split) -> dict[str, int]:
    return {"train": len(parts.train), "dev": len(parts.dev), "held_back": len(parts.held_back)}


def _parse(format_: str, content: str, checked: Checked, most: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of an uploaded file with their line; rows that cannot be read become problems."""
    with tempfile.TemporaryDirectory(prefix="mp2-upload-") as folder:
        path = Path(folder) / f"upload.{format_}"
        # the last line of what people paste has no end, which in a file would mean that it is cut
        path.write_text(content if content.endswith("\n") else f"{content}\n", encoding="utf-8", newline="")

        def plain(error: DataError) -> str:
            return re.sub(rf"{re.escape(str(path))}:(\d+)", r"line \1", str(error)).replace(
                str(path), "the upload"
            )

        def bad(error: DataError) -> None:
            checked.problems.append(Problem(plain(error)))
            if len(checked.problems) > most:
                raise DataError(f"more than {most} rows cannot be read")

        located: list[tuple[int, Mapping[str, Any]]] = []
        try:
            for where, row in read_table(path, on_bad=bad):
                located.append((where.line or len(located) + 1, row))
                if len(located) > most:
                    break
        except DataError as error:
            raise DataError(plain(error)) from None
    return located


def _check_sizes(row: Mapping[str, Any], where: str) -> None:
    """Refuse what the schema refuses of rows in JSON."""
    for column, value in row.items():
        items = value if isinstance(value, list) else [value]
        if len(items) > OPTIONS:
            raise TaskError(
                f"{where}: column {column!r}: expected at most {OPTIONS} values, got {len(items)}"
            )
        if (longest := max((len(str(item)) for item in items), default=0)) > TEXT_CHARACTERS:
            most = f"expected at most {TEXT_CHARACTERS:,} characters, got {longest:,}"
            raise TaskError(f"{where}: column {column!r}: {most}")


def _task(name: str, rows: Sequence[Mapping[str, Any]], task_file: str | None) -> TaskSpec:
    if task_file is None:
        return infer_task(rows, name)
    if _depth(task_file) > DEPTH:
        raise TaskError(f"task file: brackets are nested deeper than {DEPTH} levels")
    try:
        # an alias may stand for a tree of aliases: expanded, a short file can fill the memory
        aliased = any(
            isinstance(token, (yaml.AliasToken, yaml.AnchorToken)) for token in yaml.scan(task_file)
        )
    except (yaml.YAMLError, ValueError, OverflowError):
        aliased = False  # parse_task says where
    if aliased:
        raise TaskError("task file: aliases (*) are not allowed here; write the values out")
    task = parse_task(task_file, "task file")
    return task.model_copy(update={"name": name, "data": None, "paper": None})


def _depth(text: str) -> int:
    """How deep brackets are nested; the YAML scanner takes time that grows with its square."""
    return max(accumulate((c in "[{") - (c in "]}") for c in text), default=0)


def _counts(examples: Sequence[MRCExample]) -> dict[str, int]:
    """Rows by label; span and choice tasks have one kind of row."""
    if any(example.options for example in examples) and len({e.options for e in examples}) == 1:
        counts = Counter(example.answer for example in examples)
        options = examples[0].options
        return {option: counts[i] for i, option in enumerate(options) if counts[i]}
    return {"": len(examples)} if examples else {}


def _warn(checked: Checked, cut: int, window: int, *, inferred: bool) -> None:
    task, examples = checked.task, checked.examples
    assert task is not None

    def warn(code: str, message: str, **values: Any) -> None:
        checked.warnings.append(Notice(code, message.format(**values), values))

    counts = _counts(examples)
    for label in task.labels:
        rows = counts.get(label, 0)
        if rows < FEW:
            warn(
                "few",
                "label {label!r} has {rows} examples; {few} or more are better",
                label=label,
                rows=rows,
                few=FEW,
            )
    answers: dict[tuple[Segment, ...], set[tuple[str, ...]]] = {}
    for example in examples:
        answers.setdefault(example.segments, set()).add(example.gold_texts)
    if len(answers) < len(examples):
        warn("repeated", "{count} examples are repetitions of others", count=len(examples) - len(answers))
    contradicted = sum(len(found) > 1 for found in answers.values())
    if contradicted:
        warn("contradicted", "{count} texts stand there with different answers", count=contradicted)
    if inferred and (unread := unread_columns(task, checked.rows)):
        warn("unread", "columns that are not read: {columns}", columns=", ".join(unread))
    if cut:
        warn(
            "long",
            "{count} texts are longer than the window of {window} tokens and are cut",
            count=cut,
            window=window,
        )
