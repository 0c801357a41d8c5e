"""The outer skin without a server: what a client that stops reading, or a bug half-way, does to it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from mp2.serving.edge import FACTS, LOG, Edge
from mp2.serving.meters import Meters
from mp2.serving.server import Together


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that sends what it was asked for, in pieces."""
    scope[FACTS]["rows"] = 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(3):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise ValueError("a text of the user")


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def ask(send: Send, caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    edge = Edge(answering, body_bytes=100, stall=0.05, meters=Meters())
    with caplog.at_level(logging.INFO, LOG.name):
        asyncio.run(edge({"type": "http", "method": "GET"}, receive, send))
    return [json.loads(record.getMessage()) for record in caplog.records]


def test_a_client_that_does_not_read_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async def full(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    (line,) = ask(full, caplog)
    assert line["stalled"] is True and line["status"] == 200 and line["rows"] == 1


def test_a_bug_after_the_first_byte_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    error, request = ask(send, caplog)
    assert error["kind"] == "ValueError" and error["request"] == request["request"]
    assert "text of the user" not in json.dumps([error, request])
    assert [message["type"] for message in sent].count("http.response.start") == 1


def test_a_client_that_does_not_read_is_no_broken_disk(caplog: pytest.LogCaptureFixture) -> None:
    """A stall is a timeout, and Python's own is an OSError, for which the application has an answer."""
    app = FastAPI()

    @app.exception_handler(OSError)
    async def unusable(request: Request, error: OSError) -> JSONResponse:
        return JSONResponse({}, 503)

    @app.get("/")
    async def much() -> Response:
        return Response(b"x" * 100)

    async def full(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    with caplog.at_level(logging.INFO, LOG.name):
        asyncio.run(Edge(app, body_bytes=100, stall=0.05, meters=Meters())(scope, receive, full))
    (line,) = [json.loads(record.getMessage()) for record in caplog.records]
    assert line["event"] == "request" and line["stalled"] is True


def test_what_a_client_does_not_take_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mp2.serving.server.HEADER_SECONDS", 0.1)

    async def ends() -> bool:
        ended = asyncio.Event()

        class Endless(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                together = Together(cast(asyncio.Transport, transport))
                together.write(b"x" * (64 << 20))
                together.close()

            def connection_lost(self, exc: Exception | None) -> None:
                ended.set()

        server = await asyncio.get_running_loop().create_server(Endless, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1)
        try:
            await asyncio.wait_for(ended.wait(), 30)
        finally:
            writer.transport.abort()
            server.close()
        return ended.is_set()

    assert asyncio.run(ends())
