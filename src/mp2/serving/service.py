"""Everything a server holds, put together once: encoder, adapters, queue, jobs, keys and counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mp2.model.checkpoint import Base, load_base
from mp2.serving.batcher import Batcher, row_cost
from mp2.serving.jobs import OPEN, Jobs, Quota
from mp2.serving.keys import Keys
from mp2.serving.meters import Meters
from mp2.serving.predictor import MEMORY, WARM_UP, Predictor
from mp2.serving.store import Store

WARM_UP_ROWS = 16
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server runs.

    Attributes:
        folder: Folder of adapters, by name.
        base: Base folder or name; the shipped one when None.
        device: Where the encoder lives.
        keys: Key file; None lets everybody in.
        hosts: Host names that requests may name; ``*`` for any. On loopback this keeps web pages of other
            sites, which a browser on the same machine may show, from talking to the server.
        memory: Bytes of composed adapters to keep.
        queue: Rows that may wait.
        batch_rows: Rows of a batch; 1 answers one row at a time.
        body_bytes: Size of a request's body.
        stall: Seconds a client may keep the server waiting for the next piece of a request.
        drain: Seconds that accepted requests get when the server closes.
        tune: Whether tasks can be tuned and deleted over HTTP.
        quota: Limits of background tuning.
    """

    folder: Path
    base: str | None = None
    device: str = "cpu"
    keys: Path | None = None
    hosts: tuple[str, ...] = LOOPBACK
    memory: int = MEMORY
    queue: int = 1024
    batch_rows: int = 64
    body_bytes: int = 8 << 20
    stall: float = 15.0
    drain: float = 20.0
    tune: bool = True
    quota: Quota = field(default_factory=Quota)


class Service:
    """The parts of a running server.

    Args:
        settings: How it runs.
        base: A loaded base, where there is one already; else loaded as the settings say.

    Raises:
        CheckpointError: The base or the folder cannot be used.
        ConfigError: The key file cannot be read.
    """

    def __init__(self, settings: Settings, base: Base | None = None) -> None:
        self.settings = settings
        self.keys = Keys(settings.keys) if settings.keys else None
        self.store = Store(settings.folder)
        self.base = base or load_base(settings.base, settings.device)
        self.predictor = Predictor(self.base, folder=self.store, memory=settings.memory)
        self.meters = Meters()
        self.ready = False

    def start(self) -> None:
        """Begin to answer; needs a running event loop."""
        settings = self.settings
        self.batcher = Batcher(
            self.predictor.answer,
            rows=settings.batch_rows,
            queue=settings.queue,
            on_batch=self.meters.batch,
        )
        self.predictor.warm_up(1)
        small, large = (
            (rows * row_cost(("", WARM_UP)), min(self.predictor.warm_up(rows) for _ in range(3)))
            for rows in (1, WARM_UP_ROWS)
        )
        self.batcher.speed.measure(small, large)
        self.jobs = Jobs(self.store, settings.base, settings.quota)
        self.batcher.start()
        if settings.tune:
            self.jobs.start()
        gauge = self.meters.gauge
        gauge("mp2_queue_rows", "Rows that wait.", lambda: self.batcher.queued)
        gauge("mp2_adapters_held", "Composed adapters in memory.", lambda: self.predictor.held.adapters)
        gauge("mp2_adapters_bytes", "Bytes of composed adapters.", lambda: self.predictor.held.bytes)
        gauge("mp2_jobs_open", "Tuning jobs waiting or running.", self._open_jobs)
        self.ready = True

    def drain(self) -> None:
        """Refuse new work; what was accepted is still answered."""
        if self.ready:
            self.ready = False
            self.batcher.refuse()
            self.jobs.end_streams()

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        self.drain()
        await self.batcher.close(self.settings.drain)
        await self.jobs.close()

    def _open_jobs(self) -> float:
        return sum(job.status in OPEN for job in self.jobs.all())
