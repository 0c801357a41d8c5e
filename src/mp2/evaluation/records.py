"""One JSON line per run: what it is, how it is appended, read back and kept apart from others.

Decides the fields of a record, what makes two runs the same (the key), and that a line is either whole or
ignored. Runs nothing and computes no statistics.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mp2.errors import ConfigError, DataError, Where
from mp2.runtime import claim

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one run: one method on one task with one seed.

    Attributes:
        method, method_version: Row of the methods table.
        task, task_version: The task.
        seed: Seed of the few-shot draw and of everything random.
        shots: Rows per label (or in all, without labels) when not the protocol's own; else None.
        variant: Name of an ablation; empty for the plain grid.
        base, base_fingerprint, bank, bank_fingerprint: The frozen parts.
        test_limit: Test rows asked for; 0 means all.
        settings: The method's stages with all their settings, in words.
        splits: Split that the shots are from, and split that is scored.
        bank_steps: Steps that the bank was pre-trained for; 0 where that is not recorded.
        status: ``done``, or ``failed`` with ``error``.
        error: What went wrong.
        metric: ``accuracy`` or ``f1``.
        test, dev: Scores in [0, 1].
        train_rows, test_rows: How many.
        draw, test_key: Hashes of the chosen train and dev rows, and of the test rows.
        scores: Score of every test row (:func:`pack_scores`).
        curve: Dev scores during tuning.
        kept_stage: Stage whose best moment was kept; -1 for the start.
        seconds, test_seconds: Time of tuning and of the test rows.
        calls: Passes over the train rows (gradient steps, or evaluations of a black-box search).
        tuned_parameters: Numbers the method may change.
        peak_memory: MiB, by kind.
        versions: Package, libraries and commit.
        machine: Where it ran.
        written: Time in UTC.
    """

    method: str
    method_version: int
    task: str
    task_version: int
    seed: int
    shots: int | None
    variant: str
    base: str
    base_fingerprint: str
    bank: str | None
    bank_fingerprint: str
    test_limit: int
    settings: str = ""
    splits: str = "pool,test"
    bank_steps: int = 0
    status: Literal["done", "failed"] = "failed"
    error: str = ""
    metric: str = ""
    test: float = 0.0
    dev: float = 0.0
    train_rows: int = 0
    test_rows: int = 0
    draw: str = ""
    test_key: str = ""
    scores: str | list[int] = ""
    curve: list[dict[str, float]] = field(default_factory=list)
    kept_stage: int = -1
    seconds: float = 0.0
    test_seconds: float = 0.0
    calls: int = 0
    tuned_parameters: int = 0
    peak_memory: dict[str, int] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    written: str = ""

    @property
    def key(self) -> str:
        """What makes a run the same run: done once, it is not done again."""
        parts = (
            f"{self.method}.v{self.method_version}",
            f"{self.task}.v{self.task_version}",
            f"seed={self.seed}",
            f"shots={self.shots or 'protocol'}",
            f"variant={self.variant or '-'}",
            f"base={self.base_fingerprint}",
            f"bank={self.bank_fingerprint or '-'}",
            f"test={self.test_limit or 'all'}",
        )
        return " ".join(parts)

    @property
    def row_scores(self) -> list[float]:
        """Score of every test row, in [0, 1]."""
        return unpack_scores(self.scores, self.test_rows)


CALIBRATED = "; calibrated"  # in the settings of a run whose labels were
FIELDS = tuple(item.name for item in fields(Record))


def pack_scores(scores: Sequence[float]) -> str | list[int]:
    """Row scores, short: hexadecimal bits (first row first) when all are 0 or 1, else thousandths."""
    if all(score in (0.0, 1.0) for score in scores):
        bits = "".join("1" if score else "0" for score in scores)
        padded = bits.ljust(-(-len(bits) // 4) * 4, "0")
        return f"{int(padded, 2):0{len(padded) // 4}x}" if padded else ""
    return [round(1000 * score) for score in scores]


def unpack_scores(packed: str | Sequence[int], rows: int) -> list[float]:
    """Inverse of :func:`pack_scores`."""
    if isinstance(packed, str):
        bits = f"{int(packed, 16):0{4 * len(packed)}b}" if packed else ""
        return [float(bit) for bit in bits[:rows]]
    return [value / 1000 for value in packed]


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Records of one or several files, in order; a half-written last line is left out.

    Raises:
        DataError: A file is absent, a line is damaged, or a run stands twice.
    """
    seen: dict[str, Where] = {}
    records = []
    for path in paths:
        for where, record in _located(path):
            if record.status == "done":
                if record.key in seen:
                    raise DataError(f"{where}: this run stands already in {seen[record.key]}: {record.key}")
                seen[record.key] = where
            records.append(record)
    return records


def done_keys(paths: Iterable[Path], planned: Iterable[Record] = ()) -> set[str]:
    """Keys of the runs that files hold and that succeeded; a file that is not there holds none.

    Raises:
        ConfigError: One of them is planned, and was done with other settings or splits.
    """
    plans, done = {record.key: record for record in planned}, set[str]()
    for path in (path for path in paths if path.exists()):
        for where, record in _located(path):
            if record.status != "done":
                continue
            done.add(record.key)
            plan = plans.get(record.key, record)
            for name in ("settings", "splits"):
                was, now = getattr(record, name), getattr(plan, name)
                if was and was != now:  # the first records told no settings
                    raise ConfigError(
                        f"{where}: {record.method} on {record.task} was run with {name} {was}, and would now"
                        f" run with {now}: name it with another variant"
                    )
    return done


def _located(path: Path) -> Iterator[tuple[Where, Record]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such records file; 'mp2 evaluate' writes one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = Where(path, number)
        try:
            yield where, _parse(json.loads(line), where)
        except ValueError as error:
            if number == len(lines):  # no line end: the writer was stopped in the middle
                return
            raise DataError(f"{where}: damaged record: {error}") from error


def _parse(value: Any, where: Where) -> Record:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise DataError(f"{where}: expected a record of format {FORMAT}, got {found!r}")
    known = {name: item for name, item in value.items() if name in FIELDS}
    try:
        record = Record(**known)
    except TypeError as error:
        raise DataError(f"{where}: not a record: {str(error).removeprefix('Record.__init__() ')}") from error
    try:
        rows = len(record.row_scores)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: damaged scores: {error}") from error
    if rows != record.test_rows:
        raise DataError(f"{where}: expected scores of {record.test_rows} test rows, got {rows}")
    return record


class RecordFile:
    """A records file that one process appends to; each line is flushed to disk before the next run.

    Args:
        path: The file; made when absent. A half-written last line is taken away; a whole one without its
            end, as an editor may leave it, gets it.

    Raises:
        ConfigError: It holds something else, another process is writing to it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error}") from error
        claim(self._file, f"{path}: another grid is writing to it; give this one a file of its own")
        self._mend()

    def _mend(self) -> None:
        """End a last line that is whole; cut one that is not back to the end of the line before."""
        self._file.seek(0)
        data = self._file.read()
        begin = b'{"format":'
        if data[: len(begin)] != begin[: len(data)]:  # nothing of it is ours to mend
            self._file.close()
            raise ConfigError(f"{self.path}: not a file of records; choose another")
        whole = data.rfind(b"\n") + 1
        if whole == len(data):
            return
        try:
            json.loads(data[whole:])
            self._file.write(b"\n")
        except ValueError:
            self._file.truncate(whole)
        self._sync()

    def append(self, record: Record) -> None:
        """Write one record and flush it to disk."""
        line = json.dumps({"format": FORMAT, **asdict(record)}, ensure_ascii=False) + "\n"
        self._file.write(line.encode())
        self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._file.close()


@contextlib.contextmanager
def open_records(path: Path) -> Iterator[RecordFile]:
    """A :class:`RecordFile` that is closed afterwards."""
    file = RecordFile(path)
    try:
        yield file
    finally:
        file.close()
