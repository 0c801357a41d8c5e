"""Who may ask: the API key of a request, its limits, and the refusals that every route may give.

The dependencies are coroutines although they wait for nothing: plain ones would each go through a thread.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import Scope

from mp2.errors import ConfigError
from mp2.serving.edge import FACTS
from mp2.serving.keys import Key
from mp2.serving.problem import ProblemError
from mp2.serving.schemas import ErrorBody
from mp2.serving.service import Service

BEARER = HTTPBearer(auto_error=False, description="An API key, where the server has a key file.")
REASONS = {
    400: "The body is not JSON in UTF-8.",
    401: "No API key, or not a valid one.",
    403: "The key, or this server, does not allow it.",
    404: "There is no such thing.",
    408: "The client stopped in the middle of its request.",
    409: "The name is taken.",
    413: "The body is too large.",
    422: "The request, or a row in it, does not fit.",
    429: "Too much at once; see Retry-After.",
    503: "The adapter is damaged or the server is closing; the message says which.",
    504: "The deadline passed.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the errors that a route may give."""
    return {status: {"model": ErrorBody, "description": REASONS[status]} for status in statuses}


async def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]


async def caller(
    request: Request,
    service: ServiceOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],  # for the schema
) -> Key | None:
    """The key of a request; None where the server asks for none."""
    return admit(service, request.scope)


def admit(service: Service, scope: Scope) -> Key | None:
    """The key of a request, which is counted; None where the server asks for none.

    Raises:
        ProblemError: No valid key, or one that has asked too often.
    """
    if service.keys is None:
        return None
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    try:
        key = service.keys.check(token.strip()) if scheme.lower() == "bearer" else None
    except ConfigError:
        raise ProblemError(503, "keys", "the server's key file cannot be read") from None
    if key is None:
        raise ProblemError(401, "unauthorised", "send a valid API key: 'Authorization: Bearer mp2-...'")
    scope[FACTS]["key"] = key.name
    wait = service.keys.wait(key)
    if wait:
        service.meters.refused.labels("rate").inc()
        message = f"this key may ask {key.per_minute} times per minute"
        raise ProblemError(429, "rate", message, retry_after=max(1, math.ceil(wait)))
    return key


Caller = Annotated[Key | None, Depends(caller)]


async def tuner(service: ServiceOf, key: Caller) -> Key | None:
    """The key of a request that may tune and delete."""
    if not service.settings.tune:
        raise ProblemError(403, "forbidden", "tasks cannot be tuned or deleted on this server")
    if key is not None and not key.tune:
        raise ProblemError(403, "forbidden", "this key may ask, but not tune or delete tasks")
    return key


Tuner = Annotated[Key | None, Depends(tuner)]
