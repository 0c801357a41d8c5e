"""Encoded rows in a memory-mapped Arrow file: written in a stream, read at random.

Decides the columns of the file. Everything ragged is flat lists of integers, so reading a row is a few
slices of mapped memory. Where the file lies and when it is stale is for ``mp2.data.cache``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mp2.data.encode import Encoded, Window
from mp2.errors import DataError, Where
from mp2.tasks.render import MRCExample, Row, render, text_value
from mp2.tasks.spec import TaskSpec

FORMAT = 1
_INTS = pa.large_list(pa.int32())
_TEXTS = pa.large_list(pa.large_string())
_WINDOW = 6  # first and last token of context, no-answer words and gold of a window
SCHEMA = pa.schema(
    {
        "ids": _INTS,  # tokens of all windows of the row, one after the other
        "ends": _INTS,  # where each window ends in ids
        "options": _INTS,  # (window, option, first, last) of each option
        "spans": _INTS,  # _WINDOW integers per window, -1 where there is none
        "offsets": _INTS,  # (start, end) characters of each context token of each window
        "gold": _INTS,  # (start, end) characters of each gold answer
        "length": pa.int32(),  # tokens of the longest window
        "n_options": pa.int32(),
        "answer": pa.int32(),  # right option, -1 where unknown
        "unanswerable": pa.bool_(),
        "group": pa.uint64(),  # rows of one document share it
        "fields": _TEXTS,  # texts of the template's slots, in order
        "choices": _TEXTS,  # option texts of choice tasks
    }
)


class SplitWriter:
    """Writes rows chunk by chunk; memory is one chunk. A context manager.

    Args:
        path: The file to write.
        task: The task of the rows.
    """

    def __init__(self, path: Path, task: TaskSpec) -> None:
        self.task = task
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()

    def write(
        self,
        rows: Sequence[Row],
        examples: Sequence[MRCExample],
        encoded: Sequence[Encoded],
        groups: NDArray[np.uint64],
    ) -> None:
        """Append rows: what was read, what was rendered, what was encoded, and the documents' keys."""
        records = [_record(self.task, *row) for row in zip(rows, examples, encoded, strict=True)]
        columns: dict[str, Any] = {name: [record[name] for record in records] for name in records[0]}
        columns["group"] = groups
        arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))


def _record(task: TaskSpec, row: Row, example: MRCExample, encoded: Encoded) -> dict[str, Any]:
    windows = encoded.windows
    return {
        "ids": [token for window in windows for token in window.ids],
        "ends": list(accumulate(len(window.ids) for window in windows)),
        "options": [
            number for w, window in enumerate(windows) for option in window.options for number in (w, *option)
        ],
        "spans": [
            number
            for window in windows
            for span in (window.context, window.no_answer, window.gold)
            for number in (span or (-1, -1))
        ],
        "offsets": [number for window in windows for pair in window.offsets for number in pair],
        "gold": [number for span in example.spans for number in span],
        "length": max(len(window.ids) for window in windows),
        "n_options": encoded.n_options,
        "answer": -1 if encoded.answer is None else encoded.answer,
        "unanswerable": example.unanswerable,
        "fields": [text_value(row, task.column(name), "row") for name in task.template_fields],
        "choices": list(example.options) if task.family == "choice" else [],
    }


class _Ragged:
    """A list column of one record batch as two arrays, without copies."""

    __slots__ = ("ends", "values")

    def __init__(self, column: Any) -> None:
        self.ends: NDArray[np.int64] = column.offsets.to_numpy()
        self.values: NDArray[np.int32] = column.values.to_numpy()

    def __getitem__(self, row: int) -> list[int]:
        numbers: list[int] = self.values[self.ends[row] : self.ends[row + 1]].tolist()
        return numbers


class PreparedSplit(Sequence[Encoded]):
    """Rows of one split: ``split[i]`` is encoded, ``split.example(i)`` is the text.

    Opening costs nothing; the operating system reads what is used. Copies in other processes (pickled or
    forked) map the same file.

    Args:
        path: File written by :class:`SplitWriter`.
        task: The task of the rows.
        name: Name of the split, for messages.

    Raises:
        DataError: The file is absent or damaged.
    """

    def __init__(self, path: Path, task: TaskSpec, name: str = "split") -> None:
        self.path, self.task, self.name = Path(path), task, name
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: damaged or absent ({error}){self._anew}") from error
        if reader.schema != SCHEMA:
            raise DataError(f"{path}: written by another version{self._anew}")
        self._first = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._columns: dict[int, dict[str, _Ragged]] = {}
        self._scalars: dict[int, tuple[NDArray[np.int32], ...]] = {}

    @property
    def _anew(self) -> str:
        return f"; remove {self.path.parent} to prepare it anew"

    def __reduce__(self) -> tuple[type[PreparedSplit], tuple[Path, TaskSpec, str]]:
        return PreparedSplit, (self.path, self.task, self.name)

    def __len__(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self._decode(*self._place(index))

    def take(self, indices: Sequence[int]) -> list[Encoded]:
        """Rows at the given indices, in their order."""
        return [self._decode(*self._place(index)) for index in indices]

    def example(self, index: int) -> MRCExample:
        """One row in text, as it was rendered: segments, options, gold answers."""
        batch, row = self._place(index)
        texts = self._batches[batch]
        fields = texts.column("fields")[row].as_py()
        values: dict[str, Any] = dict(
            zip((self.task.column(name) for name in self.task.template_fields), fields, strict=True)
        )
        if self.task.family == "choice":
            values |= _choices(self.task, texts.column("choices")[row].as_py())
        example = render(self.task, values, where=Where(self.path, index), labelled=False)
        gold = self._ragged(batch)["gold"][row]
        answer = texts.column("answer")[row].as_py()
        return replace(
            example,
            answer=None if answer < 0 else answer,
            spans=tuple(zip(gold[::2], gold[1::2], strict=True)),
            unanswerable=texts.column("unanswerable")[row].as_py(),
        )

    def examples(self, indices: Sequence[int]) -> list[MRCExample]:
        """Rows at the given indices in text."""
        return [self.example(index) for index in indices]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """``(len,)`` tokens of each row's longest window."""
        return self._flat("length")

    @cached_property
    def windows(self) -> NDArray[np.int64]:
        """``(len,)`` windows of each row."""
        return np.concatenate([np.diff(self._ragged(b)["ends"].ends) for b in range(len(self._batches))])

    @cached_property
    def labels(self) -> list[int | None]:
        """Class id of each row, or its right option; None where unknown and for span tasks."""
        return [None if label < 0 else label for label in self._flat("answer").tolist()]

    @cached_property
    def unanswerable(self) -> NDArray[np.bool_]:
        """``(len,)`` whether the row is known to have no answer."""
        return self._flat("unanswerable")

    @cached_property
    def groups(self) -> list[int]:
        """Key of each row's document, for few-shot sets that share no text."""
        keys: list[int] = self._flat("group").tolist()
        return keys

    def lost(self) -> int:
        """Labelled rows whose gold answer is in none of their windows."""
        count = 0
        for b, batch in enumerate(self._batches):
            columns = self._ragged(b)
            windows = np.diff(columns["ends"].ends)
            gold = columns["spans"].values.reshape(-1, _WINDOW)[:, 4] >= 0
            found = np.add.reduceat(gold, np.cumsum(windows) - windows) > 0
            unanswerable = batch.column("unanswerable").to_numpy(zero_copy_only=False)
            answers = np.diff(columns["gold"].ends) > 0
            labelled = (batch.column("answer").to_numpy() >= 0) | unanswerable | answers
            count += int((labelled & ~found).sum())
        return count

    def _flat(self, name: str) -> NDArray[Any]:
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        return batch, index - int(self._first[batch])

    def _ragged(self, batch: int) -> dict[str, _Ragged]:
        if batch not in self._columns:
            columns = self._batches[batch]
            names = [field.name for field in SCHEMA if field.type == _INTS]
            self._columns[batch] = {name: _Ragged(columns.column(name)) for name in names}
            scalars = ("n_options", "answer")
            self._scalars[batch] = tuple(columns.column(name).to_numpy() for name in scalars)
        return self._columns[batch]

    def _decode(self, batch: int, row: int) -> Encoded:
        columns = self._ragged(batch)
        n_options, answer = self._scalars[batch]
        ids, spans, offsets = columns["ids"][row], columns["spans"][row], columns["offsets"][row]
        options = columns["options"][row]
        windows, begin, used = [], 0, 0
        for w, end in enumerate(columns["ends"][row]):
            context, no_answer, gold = (
                (spans[i], spans[i + 1]) if spans[i] >= 0 else None
                for i in range(w * _WINDOW, (w + 1) * _WINDOW, 2)
            )
            size = 2 * (context[1] - context[0] + 1) if context else 0
            pairs = offsets[used : used + size]
            windows.append(
                Window(
                    ids[begin:end],
                    [
                        (options[i + 1], options[i + 2], options[i + 3])
                        for i in range(0, len(options), 4)
                        if options[i] == w
                    ],
                    context,
                    no_answer,
                    gold,
                    list(zip(pairs[::2], pairs[1::2], strict=True)),
                )
            )
            begin, used = end, used + size
        right = int(answer[row])
        return Encoded(tuple(windows), int(n_options[row]), None if right < 0 else right)


def _choices(task: TaskSpec, options: list[str]) -> dict[str, Any]:
    if isinstance(task.options, str):
        return {task.options: options}
    return dict(zip(task.options, options, strict=False))
