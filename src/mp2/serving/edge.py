"""The outer skin of the server: sizes, stalled clients, security headers, and one log line per request.

The log never holds a text: method, route, status, times, sizes, the caller's name and counts only. What no
code foresaw is logged by its kind and place, without its message, since that may quote a text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import traceback
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mp2.serving.meters import Meters

LOG = logging.getLogger("mp2.serving")
FACTS = "mp2.facts"  # key in the ASGI scope: what handlers add to the log line
BEGAN = "mp2.began"  # key in the ASGI scope: when the request came, on the clock of the event loop
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
)


def log(event: str, **facts: Any) -> None:
    """Write one line of JSON to the log."""
    LOG.info(json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False))


class StalledError(Exception):
    """A client that does not take its response."""


class Edge:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        body_bytes: Most bytes of a body.
        stall: Seconds to wait for the next piece of a body, or for a client to take the next of a response.
        meters: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, *, body_bytes: int, stall: float, meters: Meters) -> None:
        self.app, self.body_bytes, self.stall, self.meters = app, body_bytes, stall, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, guarded."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, id_, status = time.monotonic(), secrets.token_hex(6), 0
        scope[BEGAN] = begin
        facts: dict[str, Any] = scope.setdefault(FACTS, {})

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", id_.encode())]
            try:
                async with asyncio.timeout(self.stall):
                    await send(message)
            except TimeoutError:  # an OSError, which handlers within would take for one of a disk
                raise StalledError from None

        try:
            await self.app(scope, _guarded(receive, self.body_bytes, self.stall), guarded_send)
        except StalledError:
            facts["stalled"] = True  # the client does not take its response: the connection is dropped
        except Exception as error:
            log("error", request=id_, kind=type(error).__name__, at=_place(error))
            if not status:
                problem = {
                    "type": "internal",
                    "message": f"internal error, see the log for {id_}",
                    "details": [],
                }
                await JSONResponse({"error": problem}, 500)(scope, receive, guarded_send)
        finally:
            seconds = time.monotonic() - begin
            route = getattr(scope.get("route"), "path", "other")
            self.meters.requests.labels(route, str(status)).inc()
            self.meters.seconds.labels(route).observe(seconds)
            log(
                "request",
                request=id_,
                method=scope["method"],
                route=route,
                status=status,
                ms=round(seconds * 1000, 2),
                **facts,
            )


def _guarded(receive: Receive, most: int, stall: float) -> Receive:
    """Read a body with a limit on its size and on the time between its pieces.

    A body that is too large is read on for a while and thrown away, so that the client, which is still
    sending, gets to see the answer.
    """
    size, complete = 0, False

    async def guarded() -> Message:
        nonlocal size, complete
        if complete:
            return await receive()  # waits for the client to go away: no limit
        while True:
            try:
                async with asyncio.timeout(stall):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"no more of the body came within {stall:.0f} s") from None
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size <= most:
                return message
            if complete or size > 8 * most:
                raise HTTPException(413, f"the body is larger than {most} bytes")

    return guarded


def _place(error: BaseException) -> list[str]:
    """File, line and function of each frame, without the message."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno} {frame.name}" for frame in frames
    ]
