"""Where a search can be continued from: its state after whole steps, and one line per call.

    <folder>/state-00000120/    search.json + search.safetensors, written whole or not at all
    <folder>/calls.jsonl        stage, call, candidate, loss, dev score, seconds

After a kill the newest state counts; lines that are newer than it are cut, since those calls come again, the
same. Decides nothing about what a search keeps in its state.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mp2.errors import CheckpointError, ConfigError
from mp2.runtime import whole_folder, write_json

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
        self._number = 0
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest state, with arrays as NumPy has them; None where there is none.

        Raises:
            ConfigError: The folder holds another search.
            CheckpointError: The state is damaged, or the folder cannot be written.
        """
        found = sorted(self.folder.glob("state-*"))
        if not found:
            self._cut(0)
            return None
        try:
            saved = json.loads((found[-1] / "search.json").read_text(encoding="utf-8"))
            arrays = load_file(found[-1] / "search.safetensors")
            identity, lines, state = saved["identity"], saved["log_bytes"], _join(saved["state"], arrays)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
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
        return dict(state)

    def line(self, values: Mapping[str, Any]) -> None:
        """Add a line for one call; it is written with the next state."""
        self._lines.append(json.dumps(values, ensure_ascii=False) + "\n")

    def save(self, state: Mapping[str, Any], *, now: bool = False) -> None:
        """Write a state if one is due, then drop the one before the last.

        Raises:
            CheckpointError: It cannot be written; the last one stays.
        """
        if not now and time.monotonic() - self._saved_at < EVERY:
            return
        try:
            with (self.folder / "calls.jsonl").open("ab") as log:
                log.write("".join(self._lines).encode())
                size = log.tell()
            self._lines.clear()
            arrays: dict[str, np.ndarray[Any, Any]] = {}
            tree = _split(state, "", arrays)
            target = self.folder / f"state-{self._number + 1:08d}"
            with whole_folder(target, replace=True) as aside:
                save_file(arrays, aside / "search.safetensors")
                write_json(
                    aside / "search.json",
                    {"identity": self.identity, "log_bytes": size, "state": tree},
                )
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: could not be saved ({error}); the last state is kept"
            ) from error
        self._number += 1
        for old in sorted(self.folder.glob("state-*"))[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self._saved_at = time.monotonic()

    def _cut(self, size: int) -> None:
        """Forget lines that are newer than the state."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "calls.jsonl").open("ab") as log:
                log.truncate(size)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: the search cannot be saved here: {error}") from error


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
