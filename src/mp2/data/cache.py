"""Where prepared splits lie and when they are still valid: content keys, locks, hashes of raw files.

Decides that a folder's name holds a hash of everything its rows depend on, so a stale one is never read and
nothing needs to be cleared by hand. Knows nothing of what is inside the folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mp2.errors import DataError
from mp2.runtime import sha256, whole_folder, write_json

CACHE_VARIABLE = "MP2_CACHE"


def default_cache() -> Path:
    """Folder of prepared data: ``$MP2_CACHE``, else ``~/.cache/mp2/data``."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "mp2" / "data"


def content_key(*parts: Any) -> str:
    """Short hash of JSON values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_hashes(files: Sequence[Path], cache_dir: Path) -> list[tuple[str, str]]:
    """Name and content hash of each raw file; of a folder, also the names of what is in it.

    A file is read again only when its size or its time of change differs from when it was last hashed.

    Raises:
        DataError: A file cannot be read.
    """
    memo_file = cache_dir / "files.json"
    memo = _read_memo(memo_file)
    known = len(memo)
    hashes = []
    for file in files:
        digest = hashlib.sha256()
        try:
            for path in sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]:
                facts = path.stat()
                key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
                if key not in memo:
                    memo[key] = sha256(path)
                name = path.name if path == file else path.relative_to(file)  # a folder may be a label
                digest.update(f"{name}|{memo[key]}|".encode())
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        hashes.append((file.name, digest.hexdigest()))
    if len(memo) > known:
        try:
            write_json(memo_file, memo)
        except OSError as error:
            raise DataError(f"{cache_dir}: cannot be written: {error}") from error
    return hashes


def _read_memo(path: Path) -> dict[str, str]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; a second process waits. The lock ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[Path | None]:
    """Build a folder in one process only, whole or not at all.

    Yields None when the folder is there (perhaps since another process has just built it), else a fresh
    folder to fill, which takes its place when the block ends without an error.

    Raises:
        DataError: The cache cannot be written, for example since the disk is full.
    """
    if folder.is_dir():
        yield None
        return
    try:
        with locked(folder.parent / f".{folder.name}.lock"):
            if folder.is_dir():
                yield None
                return
            for stale in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
                if stale.is_dir():
                    shutil.rmtree(stale, ignore_errors=True)
            with whole_folder(folder) as aside:
                yield aside
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error}") from error
