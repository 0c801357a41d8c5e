"""Refuses questions for which there is no time before anything else is done for them.

In an overload most requests are refused, and what that costs is taken from those that are answered. So who
could not be answered in time even with a single short row is told so before routes, dependencies and schemas;
everybody else goes on to the route, which decides by the rows that were really sent.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mp2.serving.batcher import ROW_COST, BusyError
from mp2.serving.problem import ProblemError
from mp2.serving.routes import predict
from mp2.serving.routes.access import admit
from mp2.serving.schemas import DEADLINE_MS, LONGEST_MS
from mp2.serving.service import Service

SHORT = 1 << 14  # bytes of a body that is looked into; longer ones cost more to read than to refuse


class Gate:
    """ASGI middleware before the routes.

    Args:
        app: The application.
        service: Whose questions are refused.
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] == "http" and self.service.batcher.refusal(1, ROW_COST, 0.0) is not None:
            for route in predict.router.routes:
                if route.matches(scope)[0] is Match.FULL:
                    scope["route"] = route
                    first, receive = await _peek(receive)
                    if answer := self._refusal(scope, first):
                        await answer(scope, receive, send)
                        return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, first: Message | None) -> JSONResponse | None:
        """The answer to a request that is refused, whether for its key or for lack of time."""
        allowed = _allowed_ms(first)
        if allowed is None:
            return None
        reason = self.service.batcher.refusal(1, ROW_COST, predict.left(scope, allowed))
        if reason is None:
            return None
        try:
            admit(self.service, scope)
        except ProblemError as error:
            return error.response()
        return refused(self.service, BusyError(*reason))


def refused(service: Service, error: BusyError) -> JSONResponse:
    """The answer to a request for which there is no room or no time."""
    service.meters.refused.labels("busy").inc()
    return ProblemError(429, "busy", str(error), retry_after=error.retry_after).response()


async def _peek(receive: Receive) -> tuple[Message | None, Receive]:
    """The first piece of a body, None where it can't be had, and a receiver that begins with it once more."""
    waiting: list[Message | HTTPException] = []
    try:
        waiting.append(await receive())
    except HTTPException as error:  # too large or too slow: the application says so
        waiting.append(error)

    async def again() -> Message:
        if not waiting:
            return await receive()
        item = waiting.pop()
        if isinstance(item, HTTPException):
            raise item
        return item

    first = waiting[0]
    return (None if isinstance(first, HTTPException) else first), again


def _allowed_ms(message: Message | None) -> int | None:
    """The deadline of a request, None where its body isn't short, whole and plain."""
    if message is None or message["type"] != "http.request" or message.get("more_body"):
        return None
    body = message.get("body", b"")
    if len(body) > SHORT:
        return None
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    allowed = found.get("timeout_ms", DEADLINE_MS) if isinstance(found, dict) else None
    return allowed if type(allowed) is int and 0 < allowed <= LONGEST_MS else None
