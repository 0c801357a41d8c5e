"""What the stages of one black-box search share: dev scores, the best moment, the log, and how to go on.

Decides nothing about how candidates are found (``mp2.tuning.blackbox``, ``mp2.tuning.layerwise``).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mp2.errors import CheckpointError
from mp2.tuning.course import Course
from mp2.tuning.objective import Objective
from mp2.tuning.search_state import SearchFolder


class SearchRun:
    """The black-box search of one method on one task, over all its stages.

    Args:
        course: What the stages share; a search that is continued goes on with its curve and best moment.
        folder: Where the search can be continued from; None to leave no trace.

    Attributes:
        stage: The stage that runs, or ran last.
        facts: Calls and end of each stage, similar tasks.
        search: State of the stage that a resumed search was in, until that stage continues from it.
        calls: Calls of the stage, in whole steps: one that Ctrl-C cut in two comes again, and does not count.
        lowest: Lowest train loss of the stage.
        interrupted: Whether Ctrl-C ended the search.

    Raises:
        ConfigError: The folder holds another search.
        CheckpointError: Its state is damaged.
    """

    def __init__(self, course: Course, folder: SearchFolder | None = None) -> None:
        self.course, self.state, self.folder = course, course.state, folder
        self.dev = Objective(course.state, course.dev, course.task)
        self.facts: dict[str, Any] = {"calls": {}, "ended": {}}
        self.stage, self.calls, self.lowest, self.interrupted = -1, 0, float("inf"), False
        self.search: dict[str, Any] | None = None
        self._begin = time.monotonic()
        saved = folder.load() if folder is not None else None
        if saved is not None and folder is not None:
            try:
                self._restore(saved)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise CheckpointError(
                    f"{folder.folder}: the state of its search is damaged ({error!r}); choose another folder"
                ) from error
        else:
            # a folder that cannot be written is known now, and no log is ever without a state
            self.save(0, {})
            self.flush()

    def enter(self, index: int) -> bool:
        """Go to a stage; False when it was done before the search was resumed."""
        if index < self.stage:
            return False
        if index > self.stage:
            self.search, self.lowest = None, float("inf")
        self.stage = index
        return True

    def leave(self, ended: str) -> None:
        """Note how a stage ended."""
        self.facts["calls"][str(self.stage)], self.facts["ended"][str(self.stage)] = self.calls, ended
        self.interrupted = ended == "interrupted"

    def offer(self, metric: float, dev_loss: float, call: int, loss: float) -> None:
        """A dev score: keep the state if it is the best, and tell."""
        best = self.course.best
        best.offer(self.state, self.stage, metric, dev_loss)
        self.course.record(self.stage, call, metric, dev_loss, self.seconds, loss=loss, best=best.key[0])

    def line(self, call: int, candidate: str, loss: float, dev: float | None = None, **more: float) -> None:
        """Log one call, with its dev scores if it has some."""
        if self.folder is not None:
            self.folder.line(
                {
                    "stage": self.stage,
                    "call": call,
                    "candidate": candidate,
                    "loss": loss,
                    "dev": dev,
                    **more,
                    "seconds": round(self.seconds, 3),
                }
            )

    @property
    def seconds(self) -> float:
        """Time since the search began, without the time between a kill and the resume."""
        return time.monotonic() - self._begin

    def save(self, calls: int, search_state: dict[str, Any]) -> None:
        """A step is whole: save what the search depends on, if that is due."""
        self.calls = calls
        if self.folder is None:
            return
        best = self.course.best
        self.folder.save(
            {
                "stage": self.stage,
                "seconds": self.seconds,
                "lowest": self.lowest if np.isfinite(self.lowest) else None,
                "best": {"key": list(best.key), "stage": best.stage, "snapshot": _arrays(best.snapshot)},
                "groups": _arrays(self.state.snapshot(("router", "z"))),
                "facts": self.facts,
                "curve": list(self.course.curve),
                "search": search_state,
            }
        )

    def flush(self) -> None:
        """Save the last whole step now, with the lines up to it."""
        if self.folder is not None:
            self.folder.flush()

    def _restore(self, saved: dict[str, Any]) -> None:
        self.stage, self.facts, self.course.curve = saved["stage"], saved["facts"], saved["curve"]
        self._begin = time.monotonic() - saved["seconds"]
        self.lowest = float("inf") if saved["lowest"] is None else saved["lowest"]
        best, (score, minus_loss) = self.course.best, saved["best"]["key"]
        best.key, best.stage = (score, minus_loss), saved["best"]["stage"]
        best.snapshot = self._tensors(saved["best"]["snapshot"])
        self.search = saved["search"]
        self.state.restore(self._tensors(saved["groups"]))

    def _tensors(self, arrays: dict[str, Any]) -> dict[str, Tensor]:
        return {key: torch.from_numpy(value).to(self.state.base.device) for key, value in arrays.items()}


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}
