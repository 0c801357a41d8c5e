"""Who could not be answered in time is refused before the routes; keys, limits, log and counters hold."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from mp2.errors import TaskError
from mp2.model.checkpoint import Base
from mp2.serving.edge import BEGAN, LOG
from mp2.serving.gate import SHORT, Gate
from mp2.serving.keys import add_key
from mp2.serving.service import Service, Settings
from tests.serving.kit import folder
from tests.serving.live import Client, in_thread

ROUTE = "/v1/tasks/{task}/predict"


@pytest.fixture
def busy(base: Base, tmp_path: Path) -> Iterator[tuple[Client, Service]]:
    """A server that computes one batch for as long as a test lasts, and thinks that work takes 30 s."""
    file, ends = tmp_path / "keys.json", threading.Event()
    anna = add_key(file, "anna", per_minute=6)

    def slow(rows: Sequence[Any]) -> list[TaskError]:
        assert ends.wait(60)
        return [TaskError("no") for _ in rows]

    settings = Settings(folder(base, tmp_path / "tasks"), str(base.path), keys=file, stall=0.5)
    with in_thread(settings, base) as (call, service), ThreadPoolExecutor(1) as pool:
        call.headers["authorization"] = f"Bearer {anna}"
        service.batcher._answer = slow
        service.batcher.speed.stall = 30.0
        body = {"inputs": "好", "timeout_ms": 60_000}
        first = pool.submit(call, "POST", "/v1/tasks/reviews/predict", body)
        while not service.batcher._cost:
            assert not first.done()
        try:
            yield call, service
        finally:
            ends.set()
            assert first.result().status == 422


def ask(call: Client, path: str = "/v1/tasks/none/predict", **more: Any) -> tuple[int, str]:
    """Ask a task that does not exist: a route would say 404."""
    reply = call("POST", path, {"inputs": "好", **more})
    return reply.status, reply.json["error"]["type"]


def test_what_has_no_time_is_refused_and_what_has_goes_on(
    busy: tuple[Client, Service], caplog: pytest.LogCaptureFixture
) -> None:
    call, service = busy
    with caplog.at_level(logging.INFO, LOG.name):
        reply = call("POST", "/v1/tasks/none/predict", {"inputs": "好", "timeout_ms": 1000})
    assert (reply.status, reply.json["error"]["type"]) == (429, "busy")
    assert re.fullmatch(
        r"the work would take 3\d\.\d s, the deadline is [01]\.\d s", reply.json["error"]["message"]
    )
    assert int(reply.headers["retry-after"]) >= 1 and reply.headers["x-content-type-options"] == "nosniff"
    (line,) = (json.loads(record.getMessage()) for record in caplog.records)
    assert (line["route"], line["status"], line["key"]) == (ROUTE, 429, "anna")
    counters = service.meters.text().decode()
    assert f'mp2_requests_total{{route="{ROUTE}",status="429"}} 1.0' in counters
    assert 'mp2_refused_total{reason="busy"} 1.0' in counters
    assert ask(call) == (429, "busy")  # the usual deadline is 5 s
    assert ask(call, timeout_ms=60_000) == (404, "unknown_task")
    asked = {"requests": [{"task": "none", "input": "好"}], "timeout_ms": 1000}
    assert call("POST", "/v1/predict", asked).status == 429
    assert call("GET", "/healthz").status == 200
    assert call("POST", "/v1/tasks/none/predict", {"timeout_ms": 10}, host="evil.example").status == 400


def test_a_key_is_needed_and_counted_once(busy: tuple[Client, Service]) -> None:
    call, _ = busy
    assert ask(Client(call.port), timeout_ms=10) == (401, "unauthorised")
    assert ask(Client(call.port, {"authorization": "Bearer mp2-anna-no"}), timeout_ms=10)[0] == 401
    found = [ask(call, timeout_ms=60_000) for _ in range(3)] + [ask(call, timeout_ms=10) for _ in range(2)]
    assert found == [(404, "unknown_task")] * 3 + [(429, "busy")] * 2
    assert ask(call, timeout_ms=10) == ask(call, timeout_ms=60_000) == (429, "rate")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 422),
        (b'{"timeout_ms": "soon"}', 422),
        (b'{"timeout_ms": -1}', 422),
        (b'{"timeout_ms": 1' + b"0" * 400 + b"}", 422),
        (b"[1]", 422),
        (b"\xff", 400),
        (b"[" * 10_000, 400),
        (b'{"inputs": "' + b"x" * 20_001 + b'"}', 422),
    ],
)
def test_what_is_not_understood_is_left_to_the_route(
    busy: tuple[Client, Service], raw: bytes, status: int
) -> None:
    assert busy[0]("POST", "/v1/tasks/reviews/predict", raw=raw).status == status


@pytest.mark.parametrize(
    "pieces",
    [
        [b'{"inputs": "a", ', b'"timeout_ms": 10}'],
        [b'{"timeout_ms": 10}', b" "],
        [b" " * SHORT, b'{"timeout_ms": 10}'],
        [b'{"inputs": "' + b"x" * SHORT + b'", "timeout_ms": 10}'],
        [HTTPException(408)],
        [b"{", HTTPException(413)],
    ],
)
def test_a_body_in_pieces_or_too_long_reaches_the_route_as_it_came(
    pieces: list[bytes | HTTPException],
) -> None:
    batcher = SimpleNamespace(refusal=lambda rows, cost, seconds: ("busy", 1.0))
    seen: list[bytes | HTTPException] = []

    async def receive() -> Message:
        item = pieces[len(seen)]
        if isinstance(item, HTTPException):
            raise item
        return {"type": "http.request", "body": item, "more_body": len(seen) < len(pieces) - 1}

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        while len(seen) < len(pieces):
            try:
                seen.append((await receive())["body"])
            except HTTPException as error:
                seen.append(error)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", BEGAN: time.monotonic(), "headers": []}
    gate = Gate(route, service=cast(Service, SimpleNamespace(batcher=batcher, keys=None)))
    asyncio.run(gate(scope, receive, send))
    assert seen == pieces
