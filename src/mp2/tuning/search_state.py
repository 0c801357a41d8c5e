"""Where a search can be continued from: its state after whole steps, and one line per call.

    <folder>/state-00000120/    search.json + search.safetensors, written whole or not at all
    <folder>/calls.jsonl        stage, call, candidate, loss, dev score, seconds

After a kill the newest state counts; lines that are newer than it are cut, since those calls come again, the
same. Lines are on the disk before the state that counts them. Decides nothing about what a search keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mp2.errors import CheckpointError, ConfigError
from mp2.runtime import claim, whole_folder, write_json

EVERY = 2.0  # seconds between states; what is lost by a kill is calculated again, and comes out the same


class SearchFolder:
    """State and log of one search.

    Args:
        folder: Where they lie; made when absent.
        identity: What the search is of: JSON values. A folder of another search is refused.
    """

    def __init__(self, folder: Path | str, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = Path(folder), dict(identity)
        self._lines: list[str] = []
        # the last whole one, and how many lines it has
        self._step: tuple[Mapping[str, Any], int] | None = None
        self._size = 0  # of the log, up to the newest state
        self._number = 0
        self._saved_at = time.monotonic()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, for as long as the search runs.

        Raises:
            ConfigError: Another one is in.
            CheckpointError: The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self._log.open("ab")
        except OSError as error:
            raise CheckpointError(f"{self.folder}: the search cannot be saved here: {error}") from error
        with log:
            claim(log, f"{self.folder}: another search is running in it; give this one a folder of its own")
            yield

    def load(self) -> dict[str, Any] | None:
        """The newest state, with arrays as NumPy has them; None where there is none.

        Raises:
            ConfigError: The folder holds another search, or a log without the state of its search.
            CheckpointError: The state is damaged, or the folder cannot be written.
        """
        found = self._states()
        if not found:
            if self._log.exists() and self._log.stat().st_size:
                raise ConfigError(
                    f"{self._log}: holds lines, but there is no state of their search to go on from; move it"
                    " away, or choose another folder"
                )
            self._cut(0)
            return None
        try:
            saved = json.loads((found[-1] / "search.json").read_text(encoding="utf-8"))
            arrays = load_file(found[-1] / "search.safetensors")
            identity, lines = dict(saved["identity"]), int(saved["log_bytes"])
            state = dict(_join(saved["state"], arrays))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(
                f"{found[-1]}: damaged: {error}; delete it to go on from the state before, or choose another"
                " folder"
            ) from error
        for key in {**self.identity, **identity}:
            if identity.get(key) != self.identity.get(key):
                raise ConfigError(
                    f"{self.folder}: holds a search with {key} {identity.get(key)!r}, this one has"
                    f" {self.identity.get(key)!r}; choose another folder"
                )
        self._number = int(found[-1].name.removeprefix("state-"))
        self._cut(lines)
        return state

    def line(self, values: Mapping[str, Any]) -> None:
        """Add a line for one call; it is written with the state of its step."""
        self._lines.append(json.dumps(values, ensure_ascii=False) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the state of a whole step, and write it if one is due.

        Raises:
            CheckpointError: It cannot be written; the last one stays.
        """
        self._step = state, len(self._lines)
        if time.monotonic() - self._saved_at >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the state of the last whole step and the lines up to it, then drop the state before the last.

        Raises:
            CheckpointError: It cannot be written; the last one stays.
        """
        if self._step is None:
            return
        state, lines = self._step
        try:
            size = self._append("".join(self._lines[:lines]).encode())
            arrays: dict[str, np.ndarray[Any, Any]] = {}
            tree = _split(state, "", arrays)
            target = self.folder / f"state-{self._number + 1:08d}"
            with whole_folder(target, replace=True, kind="search.json") as aside:
                save_file(arrays, aside / "search.safetensors")
                write_json(
                    aside / "search.json",
                    {"identity": self.identity, "log_bytes": size, "state": tree},
                )
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: could not be saved ({error}); the last state is kept"
            ) from error
        del self._lines[:lines]
        self._step, self._size, self._number = None, size, self._number + 1
        for old in self._states()[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self._saved_at = time.monotonic()

    def _states(self) -> list[Path]:
        """The states, oldest first; a copy that somebody made of one is none."""
        return sorted(path for path in self.folder.glob("state-*") if path.name[6:].isdigit())

    @property
    def _log(self) -> Path:
        return self.folder / "calls.jsonl"

    def _append(self, data: bytes) -> int:
        """Lines to the disk, in the place of those of an attempt that failed; gives the log's size."""
        with self._log.open("ab") as log:
            log.truncate(min(self._size, log.tell()))
            log.write(data)
            log.flush()
            os.fsync(log.fileno())
            return log.tell()

    def _cut(self, size: int) -> None:
        """Forget lines that are newer than the state, and what a kill left of a state half written."""
        try:
            with self._log.open("a+b") as log:
                log.seek(0)
                self._size = log.read(size).rfind(b"\n") + 1  # less where somebody took lines away
                log.truncate(self._size)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: the search cannot be saved here: {error}") from error
        for half in self.folder.glob(".state-*"):
            shutil.rmtree(half, ignore_errors=True)


def _split(value: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Take the arrays out of nested dictionaries and lists; a reference stays where each was."""
    if isinstance(value, np.ndarray):
        # a copy: safetensors writes the memory as it lies, and a view may lie in another order
        arrays[path] = np.array(value, order="C")
        return {"$array": path}
    if isinstance(value, Mapping):
        return {key: _split(item, f"{path}.{key}", arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, f"{path}.{index}", arrays) for index, item in enumerate(value)]
    return value


def _join(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$array"}:
            return arrays[value["$array"]]
        return {key: _join(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays) for item in value]
    return value
