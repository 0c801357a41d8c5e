"""A folder of adapters by name: the truth about which tasks exist.

Decides which names are names: a task's name can never leave the folder. Does not read what is inside an
adapter. Everything is put in place by one rename, so a reader sees an adapter or none.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from mp2.errors import CheckpointError
from mp2.tasks.spec import NAME

CLOCK = 50_000_000  # nanoseconds: two changes of a folder closer than this may carry one time


class Store:
    """Adapters in a folder.

    Args:
        folder: The folder; made when absent.

    Raises:
        CheckpointError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._listed: tuple[int, tuple[str, ...]] = (-1, ())
        self._told: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be used as a folder of adapters: {error}") from error
        self.names()  # tells at once of folders that cannot be served

    def names(self) -> tuple[str, ...]:
        """Names of all adapters, sorted; listed again only when the folder has changed."""
        changed = self.folder.stat().st_mtime_ns
        if changed == self._listed[0]:
            return self._listed[1]
        items = [item.name for item in self.folder.iterdir()]
        found = tuple(sorted(filter(self.find, items)))
        self._tell_misnamed(items)
        # what is put into a folder within does not change this one, and one without its adapter may get it
        others = {item for item in items if re.fullmatch(NAME, item)} - {*found}
        waiting = any((self.folder / item).is_dir() for item in others)
        if time.time_ns() - changed > CLOCK and not waiting:
            self._listed = (changed, found)
        return found

    def _tell_misnamed(self, items: Iterable[str]) -> None:
        """Log once each adapter whose folder has a name that no task can have; dotted ones are unfinished."""
        for name in {name for name in items if name[0] != "." and not re.fullmatch(NAME, name)} - self._told:
            if _is_adapter(self.folder / name):
                from mp2.serving.edge import log  # whose libraries mp2 predict does without

                self._told.add(name)
                log("not served", folder=name, expected=NAME)

    def find(self, name: str) -> Path | None:
        """Folder of an adapter, or None where there is none of that name."""
        if not re.fullmatch(NAME, name):
            return None
        folder = self.folder / name
        return folder if _is_adapter(folder) else None

    def foreign(self, name: str) -> bool:
        """Whether something that is no adapter stands under a name; nobody but its owner may remove it."""
        place = self.folder / name
        return place.exists() and not _is_adapter(place) and not (place.is_dir() and not any(place.iterdir()))

    def publish(self, name: str, finished: Path, *, replace: bool = False) -> None:
        """Move a finished adapter folder of the same file system to its name.

        Raises:
            CheckpointError: The name is no valid name, is an adapter's and ``replace`` is false, or is
                that of something else.
        """
        if not re.fullmatch(NAME, name):
            raise CheckpointError(f"{name!r} is no valid task name: expected {NAME}")
        target = self.folder / name
        if self.foreign(name):
            raise CheckpointError(f"{name!r} in the folder of tasks is no adapter: it is left alone")
        if _is_adapter(target):
            if not replace:
                raise CheckpointError(f"task {name!r} exists already")
            self._discard(target)
        finished.rename(target)

    def delete(self, name: str) -> bool:
        """Remove an adapter; says whether there was one."""
        folder = self.find(name)
        if folder is None:
            return False
        self._discard(folder)
        return True

    def archive(self, name: str, file: IO[bytes]) -> bool:
        """Write an adapter as a zip file with one folder; says whether there is such an adapter."""
        folder = self.find(name)
        if folder is None:
            return False
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for item in sorted(folder.iterdir()):
                if item.is_file():
                    archive.write(item, f"{name}/{item.name}")
        return True

    def _discard(self, folder: Path) -> None:
        aside = Path(tempfile.mkdtemp(prefix=".deleted.", dir=self.folder))
        with contextlib.suppress(FileNotFoundError):  # another request may have been quicker
            folder.rename(aside / "deleted")
        shutil.rmtree(aside, ignore_errors=True)


def _is_adapter(folder: Path) -> bool:
    """Whether an adapter lies there; one that cannot be looked into does, and says so when it is asked."""
    try:
        return (folder / "adapter.json").is_file()
    except OSError:
        return True
