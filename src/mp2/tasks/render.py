"""From a row of data to the one format of all tasks: context, query and options or an answer span.

Text only. Which text may be cut, where an answer may lie and which words mean "no answer" is said here
by the role of each segment; tokens come later (``mp2.data.encode``).
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mp2.errors import TaskError, Where, nearest
from mp2.tasks.spec import NO_ANSWER_WORDS, TaskSpec

Row = Mapping[str, Any]
Role = Literal["literal", "field", "cut", "context", "no_answer"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the input text.

    Attributes:
        text: The piece, exactly as the user wrote it.
        role: ``literal`` (template), ``field`` (data, never cut), ``cut`` (data, may be shortened),
            ``context`` (data in which the answer span lies; windowed when long) or ``no_answer``
            (template words that are the answer of an unanswerable row).
    """

    text: str
    role: Role = "literal"


@dataclass(frozen=True, slots=True)
class MRCExample:
    """One row in the reading-comprehension form.

    Attributes:
        segments: The text before the options; joined, it is what a person would read.
        options: Options in order; empty for tasks whose answer is a span of the context.
        answer: Index of the right option, or None (unlabelled, or a span task).
        spans: Gold spans as ``[start, end)`` characters of the context segment; each is a valid answer.
        unanswerable: The row is known to have no answer in its context.
    """

    segments: tuple[Segment, ...]
    options: tuple[str, ...] = ()
    answer: int | None = None
    spans: tuple[tuple[int, int], ...] = ()
    unanswerable: bool = False

    @property
    def context(self) -> str:
        """The text in which a span answer lies; empty for tasks with options."""
        return next((segment.text for segment in self.segments if segment.role == "context"), "")

    @property
    def labelled(self) -> bool:
        """Whether the gold answer is known."""
        return self.answer is not None or bool(self.spans) or self.unanswerable

    @property
    def gold_texts(self) -> tuple[str, ...]:
        """Gold answers as text: the right option, or the spans' exact substrings."""
        if self.answer is not None:
            return (self.options[self.answer],)
        return tuple(self.context[start:end] for start, end in self.spans)


def render(task: TaskSpec, row: Row, *, where: Where | str = "row", labelled: bool = True) -> MRCExample:
    """Fill a task's template with a row.

    Args:
        task: The task.
        row: Column name -> value.
        where: Place of the row, for error messages.
        labelled: Whether the row must carry its label or answer.

    Raises:
        TaskError: A column is missing, a value is no text, the label is unknown, or the answer does not
            occur in the context.
    """
    segments = _segments(task, row, where)
    if task.family in ("classification", "pair"):
        answer = _label_id(task, row, where) if labelled else None
        return MRCExample(segments, task.labels, answer)
    if task.family == "choice":
        options = _options(task, row, where)
        return MRCExample(segments, options, _right_option(task, row, options, where) if labelled else None)
    if not labelled:
        return MRCExample(segments)
    context = next(segment.text for segment in segments if segment.role == "context")
    spans = _gold_spans(task, row, context, where)
    if not spans and not task.no_answer:
        raise TaskError(f"{where}: no answer given, and task {task.name!r} has no rows without one")
    return MRCExample(segments, spans=spans, unanswerable=not spans)


def blank(task: TaskSpec, example: MRCExample) -> bool:
    """Whether a row brings nothing to read: no text at all, or one of the two of a pair."""
    empty = [not s.text.strip() for s in example.segments if s.role not in ("literal", "no_answer")]
    return any(empty) if task.family == "pair" else all(empty)


def _segments(task: TaskSpec, row: Row, where: Where | str) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for literal, field, _, _ in string.Formatter().parse(task.template):
        if literal:
            before, words, after = literal.partition(NO_ANSWER_WORDS) if task.no_answer else (literal, "", "")
            pieces = (Segment(before), Segment(words, "no_answer"), Segment(after))
            segments += [piece for piece in pieces if piece.text]
        if field is not None:
            role: Role = "field"
            if field == "context" and task.spans_context:
                role = "context"
            elif field in task.cut:
                role = "cut"
            segments.append(Segment(text_value(row, task.column(field), where), role))
    return tuple(segments)


def text_value(row: Row, column: str, where: Where | str) -> str:
    """The text in a column; numbers are taken as they are written.

    Raises:
        TaskError: The column is missing, empty of meaning (NaN, None) or not text.
    """
    if column not in row:
        raise TaskError(f"{where}: column {column!r} is missing; {nearest(column, row)}")
    return _text(row[column], column, where)


def _text(value: Any, column: str, where: Where | str) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise TaskError(f"{where}: column {column!r}: half a character (a lone surrogate)") from None
        return value
    if isinstance(value, bool) or value is None or not isinstance(value, (int, float)):
        shown = "nothing" if value is None else f"{type(value).__name__} {value!r}"
        raise TaskError(f"{where}: column {column!r}: expected text, got {shown}")
    if isinstance(value, float) and math.isnan(value):
        raise TaskError(f"{where}: column {column!r}: expected text, got NaN")
    return str(value)


def raw_label(value: Any) -> str:
    """A label as the coding writes it: integral floats (a pandas habit) lose their ``.0``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _label_id(task: TaskSpec, row: Row, where: Where | str) -> int:
    if task.label not in row:
        raise TaskError(f"{where}: column {task.label!r} is missing; {nearest(task.label, row)}")
    value = raw_label(row[task.label])
    if value not in task.label_ids:
        raise TaskError(
            f"{where}: unknown label {value!r} of task {task.name!r}; {nearest(value, task.label_ids)}"
        )
    return task.label_ids[value]


def _options(task: TaskSpec, row: Row, where: Where | str) -> tuple[str, ...]:
    if isinstance(task.options, str):
        if task.options not in row:
            raise TaskError(f"{where}: column {task.options!r} is missing; {nearest(task.options, row)}")
        value = row[task.options]
        if not isinstance(value, Sequence) or isinstance(value, str):
            table = "; a table has a column for each, option_a, option_b" if isinstance(value, str) else ""
            raise TaskError(
                f"{where}: column {task.options!r}: expected a list of options, got {value!r}{table}"
            )
        options = tuple(_text(option, task.options, where) for option in value)
    else:
        columns = list(task.options)
        while columns and row.get(columns[-1]) in (None, ""):  # only the last: a letter counts columns
            columns.pop()
        options = tuple(text_value(row, column, where) for column in columns)
    if len(options) < 2:
        raise TaskError(f"{where}: expected at least 2 options, got {len(options)}")
    if any(not option.strip() for option in options):
        raise TaskError(f"{where}: an option is empty: {list(options)}")
    return options


def _right_option(task: TaskSpec, row: Row, options: tuple[str, ...], where: Where | str) -> int:
    if task.label not in row:
        raise TaskError(f"{where}: column {task.label!r} is missing; {nearest(task.label, row)}")
    value = row[task.label]
    written = raw_label(value)
    for text in (value, written):  # of a number in JSON too, as a table has it
        if text in options:
            return options.index(text)
    marks = column_marks(task.options)[: len(options)]
    numbered = any(mark.isdecimal() for mark in marks)
    letter = ord(written.upper()) - ord("A") if re.fullmatch("[A-Za-z]", written) else -1
    mark = written.upper()
    if numbered and 0 <= letter < len(marks):
        mark = sorted(marks, key=int)[letter]
    if mark in marks:
        return marks.index(mark)
    if not numbered and written.isdecimal() and len(written) < 5 and int(written) < len(options):
        return int(written)
    if not marks and 0 <= letter < len(options):
        return letter
    raise TaskError(f"{where}: {written!r} is none of the {len(options)} options; {nearest(value, options)}")


def column_marks(columns: str | Sequence[str]) -> list[str]:
    """The numbers of columns such as option1 and option2, or the capital letters of option_a and option_b.

    None where a column has neither.
    """
    names = [] if isinstance(columns, str) else [column.strip().upper() for column in columns]
    for form in (r"\d+$", r"(?<![A-Z])[A-Z]$|(?<=OPTION)[A-Z]$|(?<=CHOICE)[A-Z]$"):
        found = [re.search(form, name) for name in names]
        if all(found):
            return [match[0] for match in found if match]
    return []


def _gold_spans(task: TaskSpec, row: Row, context: str, where: Where | str) -> tuple[tuple[int, int], ...]:
    """Answer texts, with or without offsets, as spans of the context."""
    if task.answer not in row:
        raise TaskError(f"{where}: column {task.answer!r} is missing; {nearest(task.answer, row)}")
    texts = _as_list(row[task.answer])
    starts = _as_list(row.get(task.answer_start)) if task.answer_start else []
    spans: list[tuple[int, int]] = []
    absent: list[str] = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TaskError(f"{where}: column {task.answer!r}: expected text, got {text!r}")
        if not text.strip():
            continue
        start = _offset(starts[index], task, where) if index < len(starts) else -1
        if start < 0 or context[start : start + len(text)] != text:
            start = context.find(text)
        if start < 0:
            absent.append(text)
        else:
            spans.append((start, start + len(text)))
    if absent and not spans:  # of several gold answers, one that is a span is enough
        raise TaskError(f"{where}: the answer {absent[0]!r} does not occur in the context")
    return tuple(dict.fromkeys(spans))


def _offset(value: Any, task: TaskSpec, where: Where | str) -> int:
    """The first character of an answer; -1 where none is given."""
    if value is None or value == "":
        return -1
    try:
        return int(float(value))  # "12.0" is what a table makes of 12 beside empty cells
    except (TypeError, ValueError, OverflowError):
        column = f"column {task.answer_start!r}"
        raise TaskError(f"{where}: {column}: expected an offset in characters, got {value!r}") from None


def _as_list(value: Any) -> list[Any]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
