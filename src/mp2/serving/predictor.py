"""Many tasks on one encoder: adapters loaded on demand, answered in mixed batches.

Decides which rows share a forward and how long an adapter stays in memory. Knows nothing of requests,
queues or HTTP. A row's failure is its own: an adapter that is damaged, or a row that does not fit its
task, does not touch the rows beside it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mp2.data.batch import length_batches, row_tokens
from mp2.data.encode import Encoded, Encoder
from mp2.errors import CheckpointError, Mp2Error, TaskError, Where, nearest
from mp2.model.answers import EVAL_TOKENS, Answer, answer_rows
from mp2.model.checkpoint import Base, load_base
from mp2.model.label_vectors import stack
from mp2.model.lanes import lanes_for, side_by_side
from mp2.model.mrc import MRCModel
from mp2.serving.ready import Mixer, Ready, heads_of, make_ready, prompts_of, read_adapter
from mp2.serving.store import Store
from mp2.tasks.render import MRCExample, blank, render
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter, Composed

Row = tuple[str, Mapping[str, Any] | str]
MEMORY = 1 << 30
CPU_TOKENS = 1024  # of a forward on a processor: what lies in its second-level cache
WARM_UP = "今天的天气很好，我们一起去公园走走吧。" * 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer and the text it belongs to.

    Attributes:
        task: Name of the task.
        answer: The answer.
        example: The rendered row.
        cut: Whether its text is longer than what is read.
    """

    task: str
    answer: Answer
    example: MRCExample
    cut: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form: label or answer text, probability, option scores, span and offsets."""
        a = self.answer
        if self.example.options:
            scores = dict(zip(self.example.options, (round(p, 6) for p in a.options), strict=True))
            return {
                "label": a.text,
                "index": a.option,
                "probability": round(a.probability, 6),
                "scores": scores,
            }
        span = {"start": a.span[0], "end": a.span[1]} if a.span else None
        return {"answer": a.text, "probability": round(a.probability, 6), "span": span}


@dataclass(frozen=True, slots=True)
class Held:
    """What is in memory: composed adapters and their bytes (the base is not counted)."""

    adapters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Item:
    """A row on its way: its place in the call, its adapter, its text and its token ids."""

    place: int
    name: str
    ready: Ready
    example: MRCExample
    row: Encoded


class Predictor:
    """Answers rows of any number of tasks with one encoder.

    One thread at a time may ask for answers; tasks may be added and removed from others meanwhile.

    Args:
        base: The frozen encoder; the shipped one when None.
        folder: Adapters by name, found when first asked for; a replaced one is noticed.
        memory: Bytes of composed adapters to keep; the least recently used go first.
        tokens: Padded tokens a forward may hold; what suits the device when None.
    """

    def __init__(
        self,
        base: Base | str | Path | None = None,
        *,
        folder: Path | Store | None = None,
        memory: int = MEMORY,
        tokens: int | None = None,
    ) -> None:
        self.base = base if isinstance(base, Base) else load_base(base)
        self.memory = memory
        self.tokens = tokens or (CPU_TOKENS if self.base.device == "cpu" else EVAL_TOKENS)
        self._store = Store(folder) if isinstance(folder, Path) else folder
        self._sources: dict[str, Adapter | Path] = {}
        self._held: OrderedDict[str, tuple[object, Ready]] = OrderedDict()  # beside the version it came from
        self._bytes = 0
        self._mixers: dict[str, Mixer] = {}
        self._encoders: dict[int, Encoder] = {}
        self._lock = threading.Lock()

    def add(self, name: str, adapter: Adapter | Path | str) -> None:
        """Make a task known by an adapter, or by the folder it is loaded from when first asked for."""
        self._sources[name] = adapter if isinstance(adapter, Adapter) else Path(adapter)

    def remove(self, name: str) -> None:
        """Forget a task and free its memory; its folder stays."""
        self._sources.pop(name, None)
        with self._lock:
            self._drop(name)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that can be asked for."""
        return tuple(dict.fromkeys([*self._sources, *(self._store.names() if self._store else ())]))

    def knows(self, name: str) -> bool:
        """Whether a task of this name can be asked for."""
        return name in self._sources or (self._store is not None and self._store.find(name) is not None)

    @property
    def held(self) -> Held:
        """Composed adapters in memory."""
        with self._lock:
            return Held(len(self._held), self._bytes)

    def predict(self, rows: Iterable[Row], places: Sequence[Where] = ()) -> list[Prediction]:
        """Answer ``(task, row)`` pairs; a row may be a plain text where the task reads one field.

        Args:
            rows: What is asked.
            places: Where each row comes from, for messages; they count rows from 1 when there are none.

        Raises:
            TaskError: A row does not fit its task, or has too much text; the message says which.
            CheckpointError: An adapter is unknown, damaged or of another base.
        """
        found: list[Prediction] = []
        for place, answer in enumerate(self.answer(list(rows))):
            if isinstance(answer, TaskError):
                raise TaskError(f"{places[place] if places else f'row {place + 1}'}: {answer}") from answer
            if isinstance(answer, Mp2Error):
                raise answer
            found.append(answer)
        return found

    def answer(self, rows: Sequence[Row]) -> list[Prediction | Mp2Error]:
        """Answer ``(task, row)`` pairs; in place of an answer, the reason why there is none."""
        results: list[Prediction | Mp2Error | None] = [None] * len(rows)
        groups: dict[tuple[Any, ...], list[_Item]] = {}
        for item in self._items(rows, results):
            groups.setdefault(item.ready.kind, []).append(item)
        batches = [
            [group[i] for i in chosen]
            for group in groups.values()
            for chosen in length_batches([row_tokens(item.row) for item in group], tokens=self.tokens)
        ]

        def ask(batch: Sequence[_Item]) -> None:
            for item, answer in zip(batch, self._forward(batch), strict=True):
                if not math.isfinite(answer.probability):
                    error = f"task {item.name!r}: damaged: its answers are no finite numbers"
                    results[item.place] = CheckpointError(error)
                    continue
                results[item.place] = Prediction(item.name, answer, item.example, item.row.cut)

        lanes = lanes_for(self.base.device, len(batches))
        side_by_side([partial(ask, batch) for batch in batches], lanes)
        return [result for result in results if result is not None]

    def warm_up(self, rows: int) -> float:
        """Answer a batch of invented rows, which nobody waits for; returns the seconds it took."""
        task = TaskSpec(name="warm-up", family="classification", labels=("甲", "乙"))
        ready = Ready(task, Composed(None, self.base.head, self.base.backbone, "prefix"))
        begin = time.perf_counter()
        example = render(task, {"text": WARM_UP}, labelled=False)
        for chosen in length_batches([len(WARM_UP)] * rows, tokens=self.tokens):
            encoded = self._encode(0, [example] * len(chosen))
            self._forward([_Item(0, "", ready, example, row) for row in encoded if isinstance(row, Encoded)])
        return time.perf_counter() - begin

    def _items(self, rows: Sequence[Row], results: list[Prediction | Mp2Error | None]) -> list[_Item]:
        """Load, render and encode; rows that cannot be get their error instead."""
        known: dict[str, Ready | Mp2Error] = {}
        rendered: dict[int, list[tuple[int, MRCExample, Ready]]] = {}
        for place, (name, row) in enumerate(rows):
            if name not in known:
                known[name] = self._try(name)
            ready = known[name]
            if isinstance(ready, Mp2Error):
                results[place] = ready
                continue
            try:
                where = f"task {name!r}"  # a place among rows of many callers says nothing to one
                example = render(ready.task, _as_row(ready.task, row, where), where=where, labelled=False)
                if example.options and blank(ready.task, example):  # a span is answered: there is none
                    raise TaskError(f"{where}: the text is empty, and there is nothing to answer")
                if len(set(example.options)) < len(example.options):  # scores are by option
                    twice = next(o for o in example.options if example.options.count(o) > 1)
                    raise TaskError(f"{where}: two options are the same: {twice!r}")
                rendered.setdefault(ready.reserve, []).append((place, example, ready))
            except TaskError as error:
                results[place] = error
        items: list[_Item] = []
        for reserve, group in rendered.items():
            encoded = self._encode(reserve, [example for _, example, _ in group])
            for (place, example, ready), row_ in zip(group, encoded, strict=True):
                if isinstance(row_, Encoded):
                    items.append(_Item(place, rows[place][0], ready, example, row_))
                else:
                    results[place] = row_
        return items

    def _encode(self, reserve: int, examples: Sequence[MRCExample]) -> Sequence[Encoded | TaskError]:
        if reserve not in self._encoders:
            self._encoders[reserve] = self.base.encoder(reserve)
        return self._encoders[reserve].each(examples)

    def _forward(self, items: Sequence[_Item]) -> list[Answer]:
        """One forward: rows of tasks of one kind; prompts and heads may differ."""
        place: dict[int, int] = {}
        which = [place.setdefault(id(item.ready), len(place)) for item in items]
        tasks = list({id(item.ready): item.ready for item in items}.values())
        return answer_rows(
            MRCModel(tasks[0].composed.backbone, tasks[0].composed.head),
            [item.row for item in items],
            [item.example.context for item in items],
            [item.example.options for item in items],
            prompts_of(tasks, self._mixers, self.base),
            which,
            injection=tasks[0].composed.injection,
            heads=heads_of(tasks),
            labels=stack([task.composed.labels for task in tasks]),
            lengths=[task.composed.answer_length for task in tasks],
            offsets=[task.composed.label_offsets for task in tasks],
            tokens=self.tokens,
        )

    def _try(self, name: str) -> Ready | Mp2Error:
        try:
            return self._get(name)
        except Mp2Error as error:
            return error

    def _get(self, name: str) -> Ready:
        source = self._sources.get(name) or (self._store.find(name) if self._store else None)
        if source is None:
            raise CheckpointError(f"no task {name!r}; {nearest(name, self.tasks)}")
        version = _version(source)  # taken before reading: what is replaced meanwhile is read again next time
        with self._lock:
            if name in self._held and _same(self._held[name][0], version):
                self._held.move_to_end(name)
                return self._held[name][1]
        adapter = source if isinstance(source, Adapter) else read_adapter(name, source)
        ready = make_ready(name, adapter, self.base)
        with self._lock:
            self._drop(name)
            self._held[name] = version, ready
            self._bytes += ready.bytes
            while self._bytes > self.memory and len(self._held) > 1:
                self._drop(next(iter(self._held)))
        return ready

    def _drop(self, name: str) -> None:
        dropped = self._held.pop(name, None)
        self._bytes -= dropped[1].bytes if dropped else 0


def _version(source: Adapter | Path) -> object:
    """Changes whenever the source does: adapters are written aside and renamed, never in place."""
    if isinstance(source, Adapter):
        return source
    try:
        facts = (source / "adapter.json").stat()
    except OSError:
        return None
    return source, facts.st_ino, facts.st_mtime_ns


def _same(old: object, new: object) -> bool:
    return old is new or (isinstance(old, tuple) and old == new)


def _as_row(task: TaskSpec, row: Mapping[str, Any] | str, where: str) -> Mapping[str, Any]:
    if not isinstance(row, str):
        return row
    if len(task.template_fields) != 1:
        columns = ", ".join(task.column(field) for field in task.template_fields)
        raise TaskError(f"{where} reads several columns ({columns}); give a row, not a text")
    return {task.column(task.template_fields[0]): row}
