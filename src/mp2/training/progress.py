"""Progress of long work: a bar with ETA on a terminal, sparse lines elsewhere, JSONL and TensorBoard logs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.progress
from rich.console import Console

from mp2.runtime import claim

INTERVAL = 30.0  # seconds between lines where stderr is no terminal


class Progress:
    """Shows and logs the steps of one run.

    Args:
        title: Name of the run; empty shows nothing.
        total: Steps in all.
        start: Steps already done.
        folder: Where ``log.jsonl`` and TensorBoard's events go; None for no logs.

    Raises:
        ConfigError: Another run has the folder; when entered.
    """

    def __init__(self, title: str, total: int, start: int = 0, folder: Path | None = None) -> None:
        self.title, self.total, self.start = title, total, start
        self.folder = folder
        self._losses: list[float] = []
        self._tokens = 0
        self._begin = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        self._file: Any = None
        self._board: Any = None

    def __enter__(self) -> Self:
        if self.folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / "log.jsonl").open("a", encoding="utf-8")
            claim(
                self._file, f"{self.folder}: another run is writing to it; give this one a folder of its own"
            )
            # what a stopped run logged after its checkpoint comes again; the checkpoint's own step does not
            self._file.truncate(_bytes_up_to(self.start, self.folder / "log.jsonl"))
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start + 1)
        if self.title and sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.start, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
            self._board.close()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """Count one step."""
        self._losses.append(loss)
        self._tokens += tokens
        note = f"loss {loss:.3f}  {self._rate():,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif self.title and time.monotonic() - self._shown > INTERVAL:
            self._shown = time.monotonic()
            left = (time.monotonic() - self._begin) / max(1, step - self.start) * (self.total - step)
            self._say(f"{self.title}: step {step}/{self.total}  {note}  ETA {left / 60:.1f} min")

    def mean_loss(self) -> float:
        """Mean loss since this was last asked."""
        mean = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        return mean

    def log(self, step: int, values: dict[str, float], *, show: bool = False) -> None:
        """Write one line of the log; ``show`` also prints it."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if show and self.title:
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._say(f"{self.title}: step {step}: {text[:400]}")

    def _rate(self) -> float:
        return self._tokens / max(1e-9, time.monotonic() - self._begin)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _bytes_up_to(step: int, log: Path) -> int:
    """Size of a log without the lines of later steps, or one that was cut."""
    size = 0
    with log.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            size += len(line)
    return size
