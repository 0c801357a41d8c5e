"""Data sets from the Hugging Face hub: files brought to where the readers look for them.

Decides when a file that was brought may take its place: when all files of its set are there, have the hub's
own hashes, and their first row is what the task file says. Which files, and under which names, is for the
task files (``data.hub``); what is here and what is wanted, for ``mp2.data.sources``. Nothing is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from mp2.data.cache import locked
from mp2.data.readers import read_rows
from mp2.data.sources import folder, missing, on_hub
from mp2.errors import DataError, Mp2Error, first_line, nearest
from mp2.runtime import place_whole, sha256, write_json
from mp2.tasks.render import render
from mp2.tasks.source import FileSource, HubSource
from mp2.tasks.spec import TaskSpec

STAGE = ".hub"  # below the root: what is on its way, and what a broken fetch can go on from
RECORD = "hub.json"  # in a set's folder: what came from where
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class _NobodyThereError(DataError):
    """The hub cannot be reached, so that the next set would fail as well."""


@dataclass(slots=True)
class Fetched:
    """What became of each task of a call.

    Attributes:
        fetched: Task -> the files that were brought.
        here: Tasks whose data were here already.
        by_hand: Task -> one line that says what to put where.
        failed: One line per task that should have been fetched and was not.
    """

    fetched: dict[str, list[Path]] = field(default_factory=dict)
    here: list[str] = field(default_factory=list)
    by_hand: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def fetch(
    tasks: Sequence[TaskSpec],
    root: Path,
    *,
    endpoint: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fetched:
    """Bring the data of tasks into the folder of the data sets, as far as they are on the hub and not here.

    Args:
        tasks: Tasks with a ``data:`` section.
        root: Folder of the data sets; made when absent.
        endpoint: Address of the hub; ``HF_ENDPOINT``, else the public one when None.
        say: Is given a line before and after each set is fetched; the first names its licence.

    Returns:
        What became of each task. A set that failed does not keep the others from being fetched, unless the
        hub cannot be reached at all: then the sets after it are not tried, and not told.
    """
    done, reached = Fetched(), True
    for task in tasks:
        if not on_hub(task, root):
            line = missing(task, root)
            if line is None:
                done.here.append(task.name)
            else:
                done.by_hand[task.name] = line
            continue
        if not reached:
            continue
        try:
            with locked(root / STAGE / "lock"):
                done.fetched[task.name] = _fetch(task, root, endpoint, say)
        except OSError as error:
            done.failed.append(f"{task.name}: {root} cannot be written: {error.strerror or error}")
        except DataError as error:
            done.failed.append(f"{task.name}: {error}")
            reached = not isinstance(error, _NobodyThereError)
    return done


def _fetch(task: TaskSpec, root: Path, endpoint: str | None, say: Callable[[str], None]) -> list[Path]:
    """Bring one set: list, download, check, and only then put all of its files into place."""
    assert task.data is not None and task.data.hub is not None
    hub, target, stage = task.data.hub, folder(task, root), root / STAGE / task.data.hub.id.replace("/", "--")
    commit, listed = _list(hub, endpoint)
    wanted = on_hub(task, root)  # again: another process may have brought some meanwhile
    chosen = {local: _matching(local, pattern, hub, listed) for local, pattern in wanted.items()}
    names = [name for found in chosen.values() for name in found]
    size = sum(listed[name].size or 0 for name in names) / 2**20
    what = f"{len(names)} file{'s' * (len(names) > 1)} ({size:.1f} MiB) of {hub.id} at {commit}"
    say(f"{task.name}: {what}; {_terms(task.data.licence)}")
    hashes = {name: _download(hub.id, commit, listed[name], stage, endpoint) for name in names}
    staged = {local: _gathered(found, stage, stage / "parts" / local) for local, found in chosen.items()}
    try:
        for local, path in staged.items():
            _check_first_row(task, path, _described(task, local))
    except Mp2Error as error:
        shutil.rmtree(stage, ignore_errors=True)
        raise DataError(
            f"{hub.id} at {commit} is not what the task file says, nothing was kept: {error}"
        ) from error
    for local, path in staged.items():
        place_whole(path, target / local)
    facts = {
        local: {"id": hub.id, "commit": commit, "sha256": {name: hashes[name] for name in found}}
        for local, found in chosen.items()
    }
    write_json(target / RECORD, _read_record(target / RECORD) | facts)
    shutil.rmtree(stage, ignore_errors=True)
    say(f"{task.name}: {', '.join(chosen)} now in {target}")
    return [target / local for local in chosen]


def _list(hub: HubSource, endpoint: str | None) -> tuple[str, dict[str, RepoSibling]]:
    """The commit that the revision stands for, and the files there by name."""
    try:
        info = HfApi(endpoint=endpoint).dataset_info(hub.id, revision=hub.revision, files_metadata=True)
    except Exception as error:  # the hub's library and the HTTP library below it raise their own kinds
        raise _explained(hub.id, hub.id, error, endpoint) from error
    if info.sha is None:
        raise DataError(f"{hub.id}: the hub does not say which commit {hub.revision!r} is")
    return info.sha, {item.rfilename: item for item in info.siblings or []}


def _matching(local: str, pattern: str, hub: HubSource, listed: Collection[str]) -> list[str]:
    """Names on the hub that a pattern stands for; several are the parts of one Parquet file."""
    found = sorted(name for name in listed if fnmatchcase(name, pattern) and ".." not in name.split("/"))
    if not found:
        raise DataError(f"{hub.id} ({hub.revision}) has no file {pattern!r}; {nearest(pattern, listed)}")
    if len(found) > 1 and not local.endswith(".parquet"):
        raise DataError(f"{hub.id}: expected one file {pattern!r}, found {', '.join(found)}")
    return found


def _download(name: str, commit: str, file: RepoSibling, stage: Path, endpoint: str | None) -> str:
    """Bring one file to the stage and give its hash; what a broken fetch had finished is used again."""
    try:
        hf_hub_download(
            name, file.rfilename, repo_type="dataset", revision=commit, local_dir=stage, endpoint=endpoint
        )
    except Exception as error:  # as above
        raise _explained(name, f"{name}/{file.rfilename}", error, endpoint) from error
    path = stage / file.rfilename
    digest = sha256(path)
    if not (digest == file.lfs.sha256 if file.lfs is not None else _blob_id(path) == file.blob_id):
        path.unlink()
        raise DataError(f"{name}/{file.rfilename}: came damaged (sha256 {digest[:12]}...); fetch it again")
    return digest


def _blob_id(path: Path) -> str:
    """The name that Git gives to a file's content, which the hub has where it does not keep a file apart."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _gathered(names: Sequence[str], stage: Path, parts: Path) -> Path:
    """The staged file, or a folder with its parts where there are several."""
    if len(names) == 1:
        return stage / names[0]
    parts.mkdir(parents=True, exist_ok=True)
    for name in names:
        (stage / name).replace(parts / PurePosixPath(name).name)
    return parts


def _described(task: TaskSpec, local: str) -> FileSource:
    assert task.data is not None
    sources = (source for alternatives in task.data.files.values() for source in alternatives)
    return next(source for source in sources if local in source.path)


def _check_first_row(task: TaskSpec, path: Path, source: FileSource) -> None:
    first = next(read_rows(path, source), None)
    if first is None:
        raise DataError(f"{path}: every row is left out by the task file")
    where, row = first
    render(task, row, where=where)


def _terms(licence: str) -> str:
    """What the user takes on: silence of the makers is no licence."""
    unstated = licence.startswith("none stated")
    return f"licence: {licence}" + (", so for research only, and not to be passed on" if unstated else "")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _explained(hub: str, name: str, error: Exception, endpoint: str | None) -> DataError:
    """What the hub's library says of a set or a file of it, in one line that tells what to do."""
    address = endpoint or constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return _NobodyThereError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be fetched")
    if isinstance(error, GatedRepoError):
        return DataError(
            f"{name}: accept its terms at {address}/datasets/{hub}, then log in with 'hf auth login'"
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        return DataError(f"{name}: {address} has no such data set or revision, or not for everybody")
    if isinstance(error, (HfHubHTTPError, ValueError)):
        return DataError(f"{name}: {address} refuses: {first_line(error)}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return DataError(f"{name}: cannot be written: {error.strerror}")
    return _NobodyThereError(f"{name}: {address} cannot be reached, or broke off: {first_line(error)}")
