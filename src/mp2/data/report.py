"""What became of the rows of a split: read, refused, removed, cut; lengths and label balance.

Decides what is counted and how it is shown as text. Counting happens in ``mp2.data.prepare``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mp2.data.store import PreparedSplit
from mp2.errors import DataError, Mp2Error, Where

EXAMPLES = 3
KINDS = 20
_PLACE = re.compile(r"^.*?:\d+: ")
_SPECIFIC = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|; (did you mean|valid:).*", re.DOTALL)


@dataclass(slots=True)
class Tally:
    """How often something happened, and the first times it did."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, what: object) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < EXAMPLES:
            self.first.append(str(what))


@dataclass(slots=True)
class SplitReport:
    """What became of the rows of one split.

    Attributes:
        task, split: Which.
        files: The raw files.
        read: Rows found in them for this split.
        kept: Rows prepared.
        bad: Kind of mistake -> how many rows have it, with the first messages.
        left_out: Reason that the task file gives (``label is '-'``, ``in dev``) -> how many rows of the
            files, with the first places; they do not count as read.
        removed: Reason (``in chnsent/test``, ``a copy``) -> how many rows, with the first places.
        copies_kept: Rows of a test set that are copies of another; test sets stay as published.
        tokens: Mean, quantiles and maximum of the tokens of a row's longest window.
        windows: Rows with several windows, and windows in all.
        full: Rows whose longest window is filled to the last token: texts were cut or windowed.
        gold_lost: Labelled rows whose gold answer is in none of their windows.
        balance: Label word (or option position, or ``no answer``) -> rows.
        seconds: Time it took.
    """

    task: str
    split: str
    files: list[str] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    bad: dict[str, Tally] = field(default_factory=dict)
    left_out: dict[str, Tally] = field(default_factory=dict)
    removed: dict[str, Tally] = field(default_factory=dict)
    copies_kept: int = 0
    tokens: dict[str, float] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    full: int = 0
    gold_lost: int = 0
    balance: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add_bad(self, error: Mp2Error) -> None:
        """Count a row that could not be read, rendered or encoded."""
        self.read += 1
        kind = _SPECIFIC.sub("…", _PLACE.sub("", str(error), count=1))[:120]
        if kind not in self.bad and len(self.bad) >= KINDS:
            kind = "other mistakes"
        self.bad.setdefault(kind, Tally()).add(error)

    def leave_out(self, reason: str, where: Where) -> None:
        """Count a row that the task file leaves out on purpose."""
        self.left_out.setdefault(reason, Tally()).add(where)

    def remove(self, reason: str, where: Where) -> None:
        """Count a row that is taken out although nothing is wrong with it."""
        self.removed.setdefault(reason, Tally()).add(where)

    @property
    def bad_rows(self) -> int:
        """Rows that could not be used."""
        return sum(tally.count for tally in self.bad.values())

    def check(self, max_bad: float) -> None:
        """Refuse a split with too many bad rows, or with none left.

        Raises:
            DataError: Says how many rows have which mistake, with the first places.
        """
        name = f"{self.task}/{self.split}"
        if self.bad_rows > max_bad * self.read:
            raise DataError(
                f"{name}: {self.bad_rows:,} of {self.read:,} rows ({100 * self.bad_rows / self.read:.1f} %)"
                f" cannot be used; at most {100 * max_bad:g} % may be left out:\n"
                + "\n".join(_mistakes(self))
            )
        if not self.kept:
            raise DataError(
                f"{name}: the split is empty: {self.read:,} rows read from {', '.join(self.files)}"
                + _gone(", removed", self.removed)
                + _gone(", left out by the task file", self.left_out)
            )

    def measure(self, split: PreparedSplit, room: int) -> None:
        """Fill in lengths, windows and balance from the finished file.

        Args:
            split: The finished file.
            room: Tokens that fit a window.
        """
        lengths, windows = split.lengths, split.windows
        points = np.percentile(lengths, [50, 95, 99])
        self.kept = len(split)
        self.tokens = {
            "mean": round(float(lengths.mean()), 1),
            **{name: float(point) for name, point in zip(("p50", "p95", "p99"), points, strict=True)},
            "max": float(lengths.max()),
        }
        self.windows = {"rows with several": int((windows > 1).sum()), "windows": int(windows.sum())}
        self.full = int((lengths >= room).sum())
        self.gold_lost = split.lost()
        self.balance = _balance(split)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> SplitReport:
        """The report from what :meth:`as_dict` gave."""
        tallies = {
            name: {key: Tally(**tally) for key, tally in raw[name].items()}
            for name in ("bad", "left_out", "removed")
        }
        return cls(**(raw | tallies))


def _balance(split: PreparedSplit) -> dict[str, int]:
    task = split.task
    if task.spans_context:
        empty = int(split.unanswerable.sum())
        return {"answer": len(split) - empty, "no answer": empty} if task.no_answer else {}
    labels = np.array([-1 if label is None else label for label in split.labels])
    counts = np.bincount(labels[labels >= 0], minlength=len(task.labels)).tolist()
    names = task.labels or [f"option {index + 1}" for index in range(len(counts))]
    return dict(zip(names, counts, strict=True))


def _gone(how: str, tallies: dict[str, Tally]) -> str:
    told = (f"{tally.count:,} {reason}, such as {tally.first[0]}" for reason, tally in tallies.items())
    return f"{how}: {'; '.join(told)}" if tallies else ""


def _mistakes(report: SplitReport) -> list[str]:
    found = sorted(report.bad.values(), key=lambda tally: -tally.count)
    return [f"  {tally.count:,} like {message}" for tally in found for message in tally.first[:1]]


def report_table(reports: Sequence[SplitReport]) -> str:
    """One line per split as a Markdown table, then what was refused, removed or lost, and why."""
    lines = [
        "| split | read | kept | removed | bad | tokens mean / p95 / max | full | several windows | labels |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in reports:
        removed = sum(tally.count for tally in r.removed.values())
        tokens = " / ".join(f"{r.tokens[name]:.0f}" for name in ("mean", "p95", "max"))
        lines.append(
            f"| {r.task}/{r.split} | {r.read:,} | {r.kept:,} | {removed:,} | {r.bad_rows:,} | {tokens}"
            f" | {r.full:,} | {r.windows['rows with several']:,} | {_short_balance(r.balance)} |"
        )
    notes = [note for report in reports for note in _notes(report)]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _short_balance(balance: dict[str, int]) -> str:
    if len(balance) <= 5:
        return ", ".join(f"{name} {count:,}" for name, count in balance.items())
    least, most = min(balance, key=lambda n: balance[n]), max(balance, key=lambda n: balance[n])
    return f"{len(balance)} labels, from {balance[least]:,} ({least}) to {balance[most]:,} ({most})"


def _notes(report: SplitReport) -> list[str]:
    name = f"{report.task}/{report.split}"
    notes = [
        f"- {name}: {tally.count:,} {how}: {reason}, such as {', '.join(tally.first[:2])}"
        for how, tallies in (("removed", report.removed), ("left out by the task file", report.left_out))
        for reason, tally in sorted(tallies.items(), key=lambda item: -item[1].count)
    ]
    notes += [f"- {name}: {line.strip()}" for line in _mistakes(report)]
    if report.copies_kept:
        notes.append(f"- {name}: copies of other rows, kept as published: {report.copies_kept:,}")
    if report.gold_lost:
        notes.append(f"- {name}: rows whose answer is in none of their windows: {report.gold_lost:,}")
    return notes
