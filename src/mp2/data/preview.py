"""Rendered rows for a person's eyes: the text as the model reads it, the gold answer marked.

Decides how a row is drawn and which rows are shown; changes nothing in them.
"""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from mp2.data.leaks import rendered_chunks
from mp2.errors import DataError, Mp2Error, Where
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import NO_ANSWER_WORDS, TaskSpec

OPEN, CLOSE = "【", "】"


def pick_examples(
    task: TaskSpec, split: str, root: Path, count: int, *, seed: int | None = None
) -> list[tuple[Where, MRCExample]]:
    """Some rendered rows of a split with their places, in the order of the file.

    Args:
        task: The task.
        split: The split.
        root: Folder of the data sets.
        count: Rows to pick.
        seed: Pick at random from the whole split; the first rows when None.

    Raises:
        DataError: The split has no row that can be rendered, or a file cannot be read.
    """
    bad: list[Mp2Error] = []
    chunks = rendered_chunks(task, split, root, lambda error: bad.append(error) if not bad else None)
    rows = (row for chunk in chunks for row in zip(chunk.places, chunk.examples, strict=True))
    if seed is None:
        picked = list(enumerate(islice(rows, count)))
    else:
        generator = random.Random(seed)
        picked = []
        for number, row in enumerate(rows):  # reservoir sampling: one pass, memory for the picked rows
            place = number if number < count else generator.randrange(number + 1)
            if place < count:
                picked[place : place + 1] = [(number, row)]
    if not picked:
        why = f", such as {bad[0]}" if bad else ""
        raise DataError(f"{task.name}/{split}: no row could be rendered{why}")
    return [row for _, row in sorted(picked, key=lambda item: item[0])]


def marked(example: MRCExample) -> str:
    """The row's text with the gold answer between 【 and 】; later answers of several are listed below."""
    text = "".join(_segment(example, index) for index in range(len(example.segments)))
    options = "，".join(
        f"{OPEN}{option}{CLOSE}" if index == example.answer else option
        for index, option in enumerate(example.options)
    )
    others = [example.context[start:end] for start, end in example.spans[1:]]
    lines = [text + options, *([f"also right: {' | '.join(others)}"] if others else [])]
    return "\n".join(lines)


def _segment(example: MRCExample, index: int) -> str:
    segment = example.segments[index]
    if segment.role == "context" and example.spans:
        start, end = example.spans[0]
        return f"{segment.text[:start]}{OPEN}{segment.text[start:end]}{CLOSE}{segment.text[end:]}"
    if segment.role == "no_answer" and example.unanswerable:
        return f"{OPEN}{NO_ANSWER_WORDS}{CLOSE}"
    return segment.text
