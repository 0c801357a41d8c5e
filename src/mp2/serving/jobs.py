"""Tuning in the background: one process per job, its state in files, so that nothing is lost with the server.

    .jobs/<id>/job.json         what was asked, by whom, and how it stands
               rows.json        the task and its examples; removed when the job ends
               progress.jsonl   one record per dev score, written by the worker
               result.json      scores, or error.json: why there is none
               adapter/         the adapter, until it is moved to its name

Decides the order and the limits. A job that was running when the server died is run again when it is back
(the same seed gives the same adapter), or is reported lost after a few tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Literal

from mp2.errors import CheckpointError, ConfigError
from mp2.runtime import claim, write_json
from mp2.serving.batcher import BusyError
from mp2.serving.store import Store

Status = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN: tuple[Status, ...] = ("queued", "running")
FOLDER = ".jobs"
POLL = 0.2  # seconds between looks at a worker's progress


@dataclass(frozen=True, slots=True)
class Job:
    """One job, as its ``job.json`` has it.

    Attributes:
        name: Name of the task it makes.
        owner: Name of the API key that asked, or empty.
        method: Method it tunes with.
        seed: Seed of everything random.
        held_back: Share of the examples that nothing sees before the final score.
        replace: Whether an adapter of that name is replaced.
        calibrate: Whether labels are calibrated first.
        id: Random hexadecimal id.
        created: Unix time, seconds.
        status: How it stands.
        attempts: How often a worker was started.
        ended: Unix time of its end, or 0.
        error: Why it failed.
    """

    name: str
    owner: str
    method: str
    seed: int
    held_back: float
    replace: bool
    calibrate: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    created: float = field(default_factory=time.time)
    status: Status = "queued"
    attempts: int = 0
    ended: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of background tuning.

    Attributes:
        queued: Jobs that may wait or run in all.
        per_key: Jobs that may wait or run for one key.
        seconds: Time a job may take.
        attempts: Times a job is started before it is reported lost.
        kept: Ended jobs that are remembered.
    """

    queued: int = 16
    per_key: int = 4
    seconds: float = 1800.0
    attempts: int = 3
    kept: int = 200


def hold(store: Path) -> IO[bytes]:
    """Keep other servers from running the jobs of a store, until what is returned is closed.

    Raises:
        ConfigError: Another server runs them, or the folder cannot be written.
    """
    instead = "give this server a folder of its own, or let it answer only (--read-only)"
    try:
        (store / FOLDER).mkdir(exist_ok=True)
        lock = (store / FOLDER / "lock").open("ab")
    except OSError as error:
        raise ConfigError(f"{store}: no task can be tuned here: {error.strerror}; {instead}") from error
    claim(lock, f"{store}: another server tunes tasks in this folder; {instead}")
    return lock


class Jobs:
    """The jobs of a store, one running at a time.

    Args:
        store: Where finished adapters go.
        base: Base the workers load; the shipped one when None.
        quota: Limits.
    """

    def __init__(self, store: Store, base: str | None, quota: Quota | None = None) -> None:
        self.store, self.base, self.quota = store, base, quota or Quota()
        self.folder = store.folder / FOLDER
        self._jobs: dict[str, Job] = {}
        self._wake = asyncio.Event()
        self._process: tuple[str, asyncio.subprocess.Process] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Take up what an earlier server left, then run jobs; needs a running event loop."""
        for file in sorted(self.folder.glob("*/job.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                known = {item.name for item in fields(Job)}
                raw = json.loads(file.read_text(encoding="utf-8"))
                job = Job(**{key: value for key, value in raw.items() if key in known})
                self._jobs[job.id] = job
                if job.status == "running":
                    self._set(job, status="queued")
        self._task = asyncio.create_task(self._run())

    def end_streams(self) -> None:
        """Let every stream of events come to its end: the server is about to close."""
        self._closing = True

    async def close(self) -> None:
        """Stop; a job that runs is taken up again by the next server."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._process is not None:
            _kill(self._process[1])
            await self._process[1].wait()

    def all(self) -> list[Job]:
        """Every job that is remembered, the newest first."""
        return sorted(self._jobs.values(), key=lambda job: -job.created)

    def get(self, id_: str) -> Job | None:
        """A job by id."""
        return self._jobs.get(id_)

    def making(self, name: str) -> Job | None:
        """The job that waits or runs to make a task of this name."""
        return next((job for job in self._jobs.values() if job.name == name and job.status in OPEN), None)

    def submit(self, job: Job, task_file: str, rows: Sequence[Mapping[str, Any]]) -> Job:
        """Put a job into the queue.

        Raises:
            BusyError: The quota of the key or of the server is used up.
            OSError: It cannot be written, and is not queued.
        """
        waiting = [other for other in self._jobs.values() if other.status in OPEN]
        mine = [other for other in waiting if other.owner == job.owner]
        for count, most, whose in (
            (len(mine), self.quota.per_key, "of yours"),
            (len(waiting), self.quota.queued, "of all callers"),
        ):
            if count >= most:
                said = f"{count} tuning jobs {whose} are waiting or running, the most is {most}"
                raise BusyError(said, 30)
        folder = self.folder / job.id
        try:
            folder.mkdir(parents=True)
            write_json(folder / "rows.json", {"task": task_file, "rows": list(rows)})
            self._set(job)
        except OSError:
            self._jobs.pop(job.id, None)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._forget_old()
        self._wake.set()
        return job

    def cancel(self, id_: str) -> Job:
        """Stop a job that waits or runs; one that has ended stays as it is."""
        job = self._jobs[id_]
        if job.status in OPEN:
            job = self._end(job, "cancelled")
            if self._process is not None and self._process[0] == id_:
                _kill(self._process[1])
        return job

    def summary(self, job: Job) -> dict[str, Any]:
        """A job and how it stands, for its owner; reads no file."""
        shown = {key: value for key, value in asdict(job).items() if key not in ("owner", "attempts")}
        return shown | {"ahead": self._ahead(job)}

    def _ahead(self, job: Job) -> int:
        others = self._jobs.values() if job.status == "queued" else ()
        return sum(other.status in OPEN and other.created < job.created for other in others)

    def state(self, job: Job) -> dict[str, Any]:
        """A job with its progress and result, for its owner."""
        folder = self.folder / job.id
        return {
            **self.summary(job),
            "progress": _lines(folder / "progress.jsonl")[0],
            "result": _read(folder / "result.json") if job.status == "done" else None,
        }

    async def events(self, id_: str) -> AsyncIterator[tuple[str, dict[str, Any]] | None]:
        """What happens to a job: ``status`` and place as they change, ``progress`` records, at last ``end``.

        None stands for "nothing new", several times a second.
        """
        told: dict[str, Any] = {}
        offset, file = 0, self.folder / id_ / "progress.jsonl"
        while True:
            job = self._jobs.get(id_)
            if job is None or self._closing:
                return
            now = {"status": job.status, "ahead": self._ahead(job)}
            if now != told:
                if job.status == "queued":
                    offset = 0  # taken up again: the curve starts anew
                told = now
                yield "status", now
            records, offset = _lines(file, offset)
            for record in records:
                yield "progress", record
            if job.status not in OPEN:
                yield "end", self.state(job)
                return
            yield None
            await asyncio.sleep(POLL)

    async def _run(self) -> None:
        while True:
            waiting = [job for job in self._jobs.values() if job.status == "queued"]
            if not waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            job = min(waiting, key=lambda job: job.created)
            try:
                await self._one(job)
            except OSError as error:  # a full disk must not stop the jobs that come after
                self._jobs[job.id] = replace(job, status="failed", error=str(error), ended=time.time())
                with contextlib.suppress(OSError):
                    (self.folder / job.id / "rows.json").unlink(missing_ok=True)

    async def _one(self, job: Job) -> None:
        """Run one job to its end."""
        folder = self.folder / job.id
        if _read(folder / "result.json") is not None:
            self._publish(job)  # it was done, only its adapter had not been moved
            return
        if job.attempts >= self.quota.attempts:
            self._end(job, "failed", f"lost: the server or the worker stopped {job.attempts} times")
            return
        job = self._set(job, status="running", attempts=job.attempts + 1)
        (folder / "progress.jsonl").unlink(missing_ok=True)
        arguments = [
            sys.executable,
            "-m",
            "mp2.serving.worker",
            str(folder),
            *([self.base] if self.base else []),
        ]
        with (folder / "worker.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.PIPE,  # its other end: the worker ends when this server does
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        self._process = job.id, process
        if self._jobs[job.id].status != "running":
            _kill(process)  # cancelled while it started
        late = False
        try:
            code = await asyncio.wait_for(process.wait(), self.quota.seconds)
        except TimeoutError:
            late = True
            process.kill()
            code = await process.wait()
        self._process = None
        if self._jobs[job.id].status != "running":
            return  # cancelled
        if late:
            self._end(job, "failed", f"stopped after {self.quota.seconds:.0f} s")
        else:
            self._finish(job, code)

    def _finish(self, job: Job, code: int) -> None:
        failed = _read(self.folder / job.id / "error.json")
        if _read(self.folder / job.id / "result.json") is not None:
            self._publish(job)
        elif failed is not None:
            self._end(job, "failed", str(failed["message"]))
        else:
            self._end(
                job, "failed", f"the worker stopped with exit code {code}; perhaps the memory was short"
            )

    def _publish(self, job: Job) -> None:
        finished = self.folder / job.id / "adapter"
        try:
            if finished.exists():
                self.store.publish(job.name, finished, replace=job.replace)
        except (CheckpointError, OSError) as error:
            self._end(job, "failed", str(error))
            return
        self._end(job, "done")

    def _end(self, job: Job, status: Status, error: str = "") -> Job:
        job = self._set(job, status=status, error=error, ended=time.time())
        folder = self.folder / job.id
        for name in ("rows.json", "error.json", "worker.log") if status != "failed" else ("rows.json",):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        return job

    def _set(self, job: Job, **changes: Any) -> Job:
        job = replace(job, **changes)
        self._jobs[job.id] = job
        write_json(self.folder / job.id / "job.json", asdict(job))
        return job

    def _forget_old(self) -> None:
        ended = [job for job in self.all() if job.status not in OPEN]
        for job in ended[self.quota.kept :]:
            del self._jobs[job.id]
            shutil.rmtree(self.folder / job.id, ignore_errors=True)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        process.kill()


def _lines(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of a growing JSONL file from a byte offset on, and the offset after them."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except OSError:
        return [], 0
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
