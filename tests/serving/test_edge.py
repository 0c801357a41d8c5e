"""The outer skin without a server: what a client that stops reading, or a bug half-way, does to it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from mp2.serving.edge import FACTS, LOG, Edge
from mp2.serving.meters import Meters


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
