"""Errors as HTTP answers: one form for all, with a type that programs can rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

TYPES = {
    400: "unreadable",
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "stalled",
    413: "too_large",
}


class ProblemError(Exception):
    """A request that is not served, and why.

    Args:
        status: HTTP status.
        kind: Stable name of the problem.
        message: For people.
        details: Places and reasons, where there are several.
        retry_after: Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        details: Sequence[dict[str, Any]] = (),
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.details, self.retry_after = status, kind, list(details), retry_after

    def body(self) -> dict[str, Any]:
        """The problem as JSON."""
        return {"type": self.kind, "message": str(self), "details": self.details}

    def response(self) -> JSONResponse:
        """The problem as an answer."""
        headers = {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": self.body()}, self.status, headers)
