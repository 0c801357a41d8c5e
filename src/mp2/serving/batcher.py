"""Requests into batches: a bounded queue, one thread that computes, and a deadline for everyone.

While a batch is computed the next one gathers, so batches grow with the load and a lone request waits for
nobody. Decides who gets in: a request that would not be done by its deadline is refused at once, by the
speed measured so far. Where the machine has become slower since, whoever can't be in time any more is refused
before its deadline, not answered after it. Knows nothing of HTTP, tasks or models.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from mp2.errors import Mp2Error
from mp2.serving.predictor import Prediction, Row
from mp2.serving.speed import Speed

Outcome = Prediction | Mp2Error
Answer = Callable[[Sequence[Row]], Sequence[Outcome]]
MARGIN = 2.0  # who asks is let in if so many times the estimated work fits the deadline
HURRY = 1.25  # who waits stays if so many times the estimated batch does: less, so that few have to go
SLICE = 0.25  # seconds after which a batch takes no more rows: between batches promises are looked at again
ROW_COST = 32  # characters that a row costs beside its text: template, options, overhead


class BusyError(Exception):
    """Refused: the queue is full, the deadline cannot be kept, or the server is closing."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = max(1, math.ceil(retry_after))


class LateError(Exception):
    """The deadline passed before the answer was there."""


@dataclass(slots=True)
class _Request:
    """Rows of one caller; ``missing`` of them have no outcome yet. ``first`` found the machine idle."""

    rows: Sequence[Row]
    deadline: float
    first: bool
    future: asyncio.Future[None]
    outcomes: list[Outcome | None] = field(default_factory=list)
    missing: int = 0


@dataclass(frozen=True, slots=True)
class _Queued:
    """One row of a request in the queue."""

    request: _Request
    index: int
    cost: int


class Batcher:
    """Gathers rows of concurrent requests and answers them together.

    Args:
        answer: Answers rows; called in one thread of its own, one call at a time.
        rows: Rows of a batch.
        queue: Rows that may wait.
        on_batch: Is told the rows and seconds of every batch.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        rows: int = 64,
        queue: int = 1024,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._answer, self._rows, self._limit, self._on_batch = answer, rows, queue, on_batch
        self._queue: deque[_Queued] = deque()
        self._cost = 0  # of everything queued or being computed
        self.speed = Speed()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "compute")
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    @property
    def wait(self) -> float:
        """Seconds until everything that is queued now will be done, by the speed measured so far."""
        return self._estimate(len(self._queue), 0)

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        self._task = asyncio.create_task(self._run())

    def refusal(self, rows: int, cost: int, seconds: float) -> tuple[str, float] | None:
        """Why some rows of some cost would not be let in now, and after how long to come back; else None.

        Who finds the machine idle is tried at least: so a wrong estimate is mended.
        """
        if self._closing:
            return "the server is closing", 5
        if len(self._queue) + rows > self._limit:
            return f"{len(self._queue)} rows are waiting, the most is {self._limit}", self.wait
        if self._cost and (needed := self._needed(rows, cost)) > seconds:
            return _short(needed, seconds), self.wait
        return None

    async def submit(self, rows: Sequence[Row], seconds: float) -> list[Outcome]:
        """Answer rows within some seconds.

        Raises:
            BusyError: There is no room, no time, or the server is closing.
            LateError: The deadline passed nevertheless.
        """
        costs = [row_cost(row) for row in rows]
        first = not self._cost
        # made where it is raised: an error that its frame keeps is garbage until the next full collection
        if (reason := self.refusal(len(rows), sum(costs), seconds)) is not None:
            raise BusyError(*reason)
        loop = asyncio.get_running_loop()
        end, future = loop.time() + seconds, loop.create_future()
        request = _Request(rows, end, first, future, [None] * len(rows), len(rows))
        self._queue.extend(_Queued(request, index, cost) for index, cost in enumerate(costs))
        self._cost += sum(costs)
        self._wake.set()
        late: Callable[[], Exception] = partial(LateError, f"no answer within {seconds:.1f} s")
        if first and (needed := self._needed(0, 0)) > seconds:
            late = partial(BusyError, _short(needed, seconds), self.wait)
        timer = loop.call_at(end, _expire, future, late)
        try:
            await future
        finally:
            timer.cancel()
            future.cancel()  # nothing where it is done; else the caller has gone
        return [outcome for outcome in request.outcomes if outcome is not None]

    def refuse(self) -> None:
        """Accept nothing from now on; what is queued will still be answered."""
        self._closing = True

    async def close(self, seconds: float = 30.0) -> None:
        """Refuse what comes, finish what is queued, then stop."""
        self.refuse()
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, seconds)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._take()
            if not batch:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            begin = time.perf_counter()
            outcomes = await loop.run_in_executor(self._thread, self._compute, batch)
            self._learn(batch, time.perf_counter() - begin)
            for queued, outcome in zip(batch, outcomes, strict=True):
                _deliver(queued, outcome)

    def _needed(self, rows: int, cost: int) -> float:
        """Seconds that must be left for some more rows to be let in."""
        return self._promised(self._estimate(len(self._queue) + rows, cost), MARGIN)

    def _estimate(self, rows: int, more: int) -> float:
        """Seconds until ``rows`` rows are done that wait or will, beside those being computed."""
        return self.speed.seconds(self._cost + more, max(1, math.ceil(rows / self._rows)))

    def _promised(self, estimate: float, margin: float) -> float:
        """Seconds that may be promised for work that is estimated to take some."""
        return estimate * margin + self.speed.stall

    def _take(self) -> list[_Queued]:
        """The next rows in order of arrival that will be in time; who can't be any more is refused."""
        batch: list[_Queued] = []
        now, cost, tightest = asyncio.get_running_loop().time(), 0, math.inf
        while self._queue and len(batch) < self._rows:
            queued = self._queue[0]
            request, seconds = queued.request, self.speed.seconds(cost + queued.cost)
            done = now + self._promised(seconds, HURRY)
            if batch and (seconds > SLICE or done > tightest):
                break
            self._queue.popleft()
            if done > request.deadline and not request.first and not request.future.done():
                request.future.set_exception(BusyError("the machine has become slower", self.wait))
            if request.future.done():
                self._cost -= queued.cost
                continue
            batch.append(queued)
            cost += queued.cost
            tightest = min(tightest, math.inf if request.first else request.deadline)
        return batch

    def _compute(self, batch: Sequence[_Queued]) -> Sequence[Outcome | Exception]:
        """In the compute thread. What no code foresaw hits the row that caused it, not the whole batch."""
        rows = [queued.request.rows[queued.index] for queued in batch]
        try:
            return self._answer(rows)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [self._compute([queued])[0] for queued in batch]

    def _learn(self, batch: Sequence[_Queued], seconds: float) -> None:
        cost = sum(queued.cost for queued in batch)
        self._cost -= cost
        self.speed.learn(cost, seconds)
        if self._on_batch is not None:
            self._on_batch(len(batch), seconds)


def row_cost(row: Row) -> int:
    """What a row costs, in characters."""
    values = row[1]
    if isinstance(values, str):
        return ROW_COST + len(values)
    cells = (value if isinstance(value, list) else [value] for value in values.values())
    return ROW_COST + sum(len(str(item)) for cell in cells for item in cell)


def _short(needed: float, seconds: float) -> str:
    return f"the work would take {needed:.1f} s, the deadline is {seconds:.1f} s"


def _expire(future: asyncio.Future[None], error: Callable[[], Exception]) -> None:
    if not future.done():
        future.set_exception(error())


def _deliver(queued: _Queued, outcome: Outcome | Exception) -> None:
    request = queued.request
    if request.future.done():
        return
    if isinstance(outcome, Exception) and not isinstance(outcome, Mp2Error):
        request.future.set_exception(outcome)
        return
    request.outcomes[queued.index] = outcome
    request.missing -= 1
    if not request.missing:
        request.future.set_result(None)
