"""What a person sees while data are prepared: a bar of splits on a terminal, a line per finished split."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from mp2.data.report import SplitReport


@dataclass(slots=True)
class Bar:
    """How many splits of a call are done, drawn on a terminal only; without a total nothing is drawn."""

    total: int
    done: int = 0

    def step(self, splits: int = 1) -> None:
        """Some more are done."""
        self.done += splits
        self.draw("")

    def draw(self, note: str) -> None:
        """Draw over what stands in the last line."""
        if self.total and sys.stderr.isatty():
            filled = 20 * self.done // self.total
            bar = f"[{'#' * filled}{'-' * (20 - filled)}] {self.done} of {self.total} splits"
            print(f"\r\033[K{bar}  {note}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the last line empty for what comes next."""
        if self.total and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Progress:
    """One line on stderr per split; on a terminal the bar counts its rows while they are read."""

    def __init__(self, name: str, bar: Bar, interval: float = 0.5) -> None:
        self.name, self.bar, self.interval = name, bar, interval
        self._shown = time.monotonic()

    def show(self, rows: int) -> None:
        """Say how far it is, at most once per interval."""
        now = time.monotonic()
        if now - self._shown > self.interval:
            self._shown = now
            self.bar.draw(f"{self.name}: {rows:,} rows")

    def end(self, report: SplitReport) -> None:
        """Say what came of it."""
        start = "\r\033[K" if sys.stderr.isatty() else ""
        line = f"{self.name}: {report.kept:,} of {report.read:,} rows kept, {report.seconds:.1f} s"
        print(f"{start}{line}", file=sys.stderr, flush=True)
