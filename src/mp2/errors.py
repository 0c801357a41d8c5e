"""Every error a user can cause, as one tree.

    Mp2Error                 exit code 2, printed without a traceback
    ├── TaskError            a task file, or a row that does not fit its task
    ├── DataError            a data file: missing, cut, wrongly encoded, a renamed column
    ├── ConfigError          an option or a combination of options that cannot work
    ├── CheckpointError      a model, bank or adapter folder: absent, damaged, of another base
    ├── SearchError          a black-box search that cannot go on; carries the best so far
    └── WriteError           a file or folder that cannot be written; an OSError too

A message says what was expected, what came, where, and the nearest valid choice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Mp2Error(Exception):
    """Base of every error that the user can mend."""


class TaskError(Mp2Error):
    """A task description, or a row that does not fit it."""


class DataError(Mp2Error):
    """A data file that cannot be read as what it claims to be."""


class ConfigError(Mp2Error):
    """An option, or a combination of options, that cannot work."""


class CheckpointError(Mp2Error):
    """A saved model, bank or adapter that is absent, damaged or of another base."""


class SearchError(Mp2Error):
    """A black-box search that had to stop; ``best`` is the best state it had found, if any."""

    def __init__(self, message: str, best: Any = None) -> None:
        super().__init__(message)
        self.best = best


class WriteError(Mp2Error, OSError):
    """A file or folder that cannot be written.

    Also an ``OSError``, for those who go on when a disk is full and know nothing of this tree.
    """


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file, printed as ``path:line``."""

    path: Path | str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line is not None else str(self.path)


def first_line(error: Exception) -> str:
    """The first line of an error of another library, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: object, choices: Iterable[object], *, shown: int = 12) -> str:
    """Return the tail of an error message: the nearest valid name and the choices.

    Args:
        name: What was given.
        choices: What would have been valid, in the order to show them.
        shown: How many choices to list at most.
    """
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:shown]) + (f", ... ({len(names)} in all)" if len(names) > shown else "")
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {listed}" if names else "there is none"
