"""Load on an HTTP server from a process of its own: open loop (arrivals wait for nobody) and closed loop.

Reads one plan per line of standard input (:class:`Plan` as JSON) and writes one result per line. A latency
counts from the moment a request was due, so a generator or a server that falls behind shows in the numbers.
Decides arrivals and what counts as an answer; knows nothing of the server beside its HTTP interface.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE = 2.0  # seconds after its deadline when a request counts as hanging
PAUSE = 1.0  # seconds that a refused client of a closed loop waits: the least that Retry-After says
YIELD = 16  # requests sent in a row when behind, before answers are read


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        port: Port on loopback.
        texts: CSV file whose column ``text`` is asked about.
        tasks: Each request asks one of the first ``tasks`` tasks, ``t00000`` on.
        seconds: Length of the run.
        rate: Requests per second that arrive (open loop); 0 for a closed loop.
        clients: Clients of a closed loop, each asking again when it has its answer.
        deadline_ms: Deadline sent with each request.
        seed: Seed of arrivals, tasks and texts.
    """

    port: int
    texts: str
    tasks: int
    seconds: float
    rate: float = 0.0
    clients: int = 64
    deadline_ms: int = 1000
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What came back: statuses (0 for a broken connection), seconds of answers and of refusals."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    no_retry_after: int = 0
    last: float = 0.0

    def count(self, status: int, head: bytes, seconds: float, now: float) -> None:
        """Count one response."""
        self.statuses[status] += 1
        self.last = now
        if status == 200:
            self.answered.append(seconds)
        elif status == 429:
            self.refused.append(seconds)
            self.no_retry_after += b"retry-after:" not in head.lower()


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection that is used again and again; one request at a time."""

    def __init__(self, idle: list[Connection]) -> None:
        self.idle, self.buffer, self.size = idle, bytearray(), -1
        self.status, self.head = 0, b""
        self.done: Callable[[int, bytes], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes, done: Callable[[int, bytes], None]) -> None:
        """Send a request; ``done`` gets status and headers, or 0 when the connection breaks."""
        self.done = done
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read headers, then a body of the length they say."""
        self.buffer += data
        if self.size < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self.buffer[:end])
            self.status = int(self.head[9:12])
            place = self.head.lower().index(b"content-length:") + 15
            self.size = end + 4 + int(self.head[place:].split(b"\r\n", 1)[0])
        if len(self.buffer) >= self.size:
            del self.buffer[: self.size]
            self.size = -1
            done, self.done = self.done, None
            self.idle.append(self)
            if done is not None:
                done(self.status, self.head)

    def connection_lost(self, exc: Exception | None) -> None:
        """A request that was under way has failed."""
        if self in self.idle:
            self.idle.remove(self)
        done, self.done = self.done, None
        if done is not None:
            done(0, b"")


class Generator:
    """Sends the requests of a plan and counts what comes back."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.tally, self.open = plan, Tally(), 0
        self.random = random.Random(plan.seed)
        self.idle: list[Connection] = []
        self.dials: set[asyncio.Task[None]] = set()
        with Path(plan.texts).open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
        self.bodies = [
            json.dumps({"inputs": text, "timeout_ms": plan.deadline_ms}, ensure_ascii=False).encode()
            for text in texts
        ]

    async def run(self) -> dict[str, Any]:
        """Run the plan; returns its result."""
        loop = asyncio.get_running_loop()
        begin, cpu = loop.time(), time.process_time()
        if self.plan.rate:
            await self._open_loop(begin)
        else:
            await asyncio.gather(*(self._client(begin) for _ in range(self.plan.clients)))
        end = loop.time() + self.plan.deadline_ms / 1000 + GRACE
        while self.open and loop.time() < end:
            await asyncio.sleep(0.02)
        for connection in [*self.idle]:
            connection.transport.close()
        return self._result(begin, time.process_time() - cpu)

    async def _open_loop(self, begin: float) -> None:
        loop, due, sent = asyncio.get_running_loop(), begin, 0
        while True:
            due += self.random.expovariate(self.plan.rate)
            if due > begin + self.plan.seconds:
                return
            wait = due - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            elif sent % YIELD == 0:
                await asyncio.sleep(0)
            self.tally.behind.append(loop.time() - due)
            self._send(due)
            sent += 1

    async def _client(self, begin: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < begin + self.plan.seconds:
            answered: asyncio.Future[int] = loop.create_future()
            self._send(loop.time(), answered.set_result)
            if await answered == 429:
                await asyncio.sleep(PAUSE)

    def _send(self, due: float, then: Callable[[int], None] = lambda status: None) -> None:
        loop = asyncio.get_running_loop()
        self.open += 1

        def done(status: int, head: bytes) -> None:
            self.open -= 1
            self.tally.count(status, head, loop.time() - due, loop.time())
            then(status)

        request = self._request()
        if self.idle:
            self.idle.pop().ask(request, done)
            return
        dial = loop.create_task(self._dial(request, done))
        self.dials.add(dial)
        dial.add_done_callback(self.dials.discard)

    async def _dial(self, request: bytes, done: Callable[[int, bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self.idle), "127.0.0.1", self.plan.port
            )
        except OSError:
            done(0, b"")
            return
        connection.ask(request, done)

    def _request(self) -> bytes:
        body = self.random.choice(self.bodies)
        task = self.random.randrange(self.plan.tasks)
        return (
            f"POST /v1/tasks/t{task:05d}/predict HTTP/1.1\r\nhost: localhost\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body

    def _result(self, begin: float, cpu: float) -> dict[str, Any]:
        tally = self.tally
        seconds = max(tally.last - begin, self.plan.seconds)
        sent = tally.statuses.total() + self.open
        return {
            "sent": sent,
            "seconds": round(seconds, 2),
            "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
            "load_cpu_ms": round(1000 * cpu / max(1, sent), 3),
            "ok": len(tally.answered),
            "offered": round(self.plan.rate, 1),
            "answered": round(len(tally.answered) / seconds, 1),
            "p50_ms": milliseconds(tally.answered, 0.5),
            "p99_ms": milliseconds(tally.answered, 0.99),
            "max_ms": milliseconds(tally.answered, 1.0),
            "refused": tally.statuses[429],
            "refused_p99_ms": milliseconds(tally.refused, 0.99),
            "no_retry_after": tally.no_retry_after,
            "server_errors": sum(n for s, n in tally.statuses.items() if s >= 500 or s == 0),
            "other": sum(n for s, n in tally.statuses.items() if 0 < s < 500 and s not in (200, 429)),
            "hanging": self.open,
            "behind_p99_ms": milliseconds(tally.behind, 0.99),
        }


def milliseconds(seconds: list[float], share: float) -> float | None:
    """A quantile (nearest rank) in milliseconds; None of nothing."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    return round(1000 * ranked[max(0, math.ceil(share * len(ranked)) - 1)], 2)


def main() -> None:
    """Run plans from standard input until it ends."""
    for line in sys.stdin:
        plan = Plan(**json.loads(line))
        print(json.dumps(asyncio.run(Generator(plan).run())), flush=True)


if __name__ == "__main__":
    main()
