"""What the stages of one black-box search share: dev scores, the best moment, the log, and how to go on.

Decides nothing about how candidates are found (``mp2.tuning.blackbox``, ``mp2.tuning.layerwise``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mp2.tasks.spec import TaskSpec
from mp2.tuning.asktell import Array
from mp2.tuning.gradient import Best, Shots
from mp2.tuning.objective import Objective
from mp2.tuning.search_state import SearchFolder
from mp2.tuning.state import TaskState


class SearchRun:
    """The black-box search of one method on one task, over all its stages.

    Args:
        state: Parameters of the task.
        task: The task.
        train: Train rows.
        dev: Dev rows; decide which moment is kept.
        best: The best moment so far, updated.
        record: Receives one record per dev score.
        seed: Seed of all candidates.
        folder: Where the search can be continued from; None to leave no trace.

    Attributes:
        stage: The stage that runs, or ran last.
        facts: Calls and end of each stage, similar tasks.
        curve: Every record so far, those before a resume included.
        search: State of the stage that a resumed search was in, until that stage continues from it.
        calls: Calls of the stage, in whole steps: one that Ctrl-C cut in two comes again, and does not count.
        lowest: Lowest train loss of the stage.
        interrupted: Whether Ctrl-C ended the search.

    Raises:
        ConfigError: The folder holds another search.
        CheckpointError: Its state is damaged.
    """

    def __init__(
        self,
        state: TaskState,
        task: TaskSpec,
        train: Shots,
        dev: Shots,
        best: Best,
        record: Callable[[dict[str, float]], None],
        *,
        seed: int,
        folder: SearchFolder | None = None,
    ) -> None:
        self.state, self.task, self.train, self.best, self.record = state, task, train, best, record
        self.seed, self.folder = seed, folder
        self.dev = Objective(state, dev, task)
        self.facts: dict[str, Any] = {"calls": {}, "ended": {}}
        self.curve: list[dict[str, float]] = []
        self.stage, self.calls, self.lowest, self.interrupted = -1, 0, float("inf"), False
        self.search: dict[str, Any] | None = None
        self._begin = time.monotonic()
        saved = folder.load() if folder is not None else None
        if saved is not None:
            self._restore(saved)
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
        self.best.offer(self.state, self.stage, metric, dev_loss)
        values = {
            "stage": self.stage,
            "step": call,
            "loss": loss,
            "dev": metric,
            "dev_loss": dev_loss,
            "best": self.best.key[0],
            "seconds": self.seconds,
        }
        self.curve.append(values)
        self.record(values)

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

    def tensor(self, values: Array) -> Tensor:
        """As the model computes, on its device."""
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.state.base.device)

    def save(self, calls: int, search_state: dict[str, Any]) -> None:
        """A step is whole: save what the search depends on, if that is due."""
        self.calls = calls
        if self.folder is None:
            return
        self.folder.save(
            {
                "stage": self.stage,
                "seconds": self.seconds,
                "lowest": self.lowest if np.isfinite(self.lowest) else None,
                "best": {
                    "key": list(self.best.key),
                    "stage": self.best.stage,
                    "snapshot": _arrays(self.best.snapshot),
                },
                "groups": _arrays(self.state.snapshot(("router", "z"))),
                "facts": self.facts,
                "curve": list(self.curve),
                "search": search_state,
            }
        )

    def flush(self) -> None:
        """Save the last whole step now, with the lines up to it."""
        if self.folder is not None:
            self.folder.flush()

    def _restore(self, saved: dict[str, Any]) -> None:
        self.stage, self.facts, self.curve = saved["stage"], saved["facts"], saved["curve"]
        self._begin = time.monotonic() - saved["seconds"]
        self.lowest = float("inf") if saved["lowest"] is None else saved["lowest"]
        score, minus_loss = saved["best"]["key"]
        self.best.key, self.best.stage = (score, minus_loss), saved["best"]["stage"]
        self.best.snapshot = self._tensors(saved["best"]["snapshot"])
        self.search = saved["search"]
        self.state.restore(self._tensors(saved["groups"]))

    def _tensors(self, arrays: dict[str, Any]) -> dict[str, Tensor]:
        return {key: torch.from_numpy(value).to(self.state.base.device) for key, value in arrays.items()}


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}
