"""The HTTP application: routes, page, errors and the outer skin, put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from mp2.errors import Mp2Error, WriteError
from mp2.serving.batcher import BusyError, LateError
from mp2.serving.edge import Edge, log
from mp2.serving.gate import Gate, refused
from mp2.serving.problem import TYPES, ProblemError
from mp2.serving.routes import jobs, predict, tasks
from mp2.serving.routes.access import caller, refusals
from mp2.serving.service import Service

PAGE = Path(__file__).parent / "page"
ABOUT = """Few-shot Chinese text tasks on one frozen encoder. A task is learned from a few examples
(`POST /v1/tasks`), then answers texts (`POST /v1/tasks/{task}/predict`); requests of all tasks share
batches."""


def create_app(service: Service) -> FastAPI:
    """The application of a service, which it starts and closes with its own life."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="mp2",
        version=version("mp2"),
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # the usual page for it loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    settings = service.settings
    app.add_middleware(Gate, service=service)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    app.add_middleware(Edge, body_bytes=settings.body_bytes, stall=settings.stall, meters=service.meters)
    app.include_router(predict.router)
    app.include_router(tasks.router)
    app.include_router(jobs.router)
    _health(app, service)
    _page(app)
    _errors(app, service)
    return app


def _health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"], responses={503: {"description": "Starting or closing."}})
    async def readyz() -> JSONResponse:
        """The server takes requests: not while it starts or closes."""
        ready = service.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get(
        "/metrics",
        tags=["operation"],
        dependencies=[Depends(caller)],
        responses=refusals(401, 429, 503) | {200: {"content": {"text/plain": {}}}},
        response_class=Response,
    )
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


def _errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> JSONResponse:
        return error.response()

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return refused(service, error)

    @app.exception_handler(LateError)
    async def late(request: Request, error: LateError) -> JSONResponse:
        service.meters.late.inc()
        return ProblemError(504, "late", str(error)).response()

    @app.exception_handler(Mp2Error)
    async def mistake(request: Request, error: Mp2Error) -> JSONResponse:
        return ProblemError(422, "invalid", str(error)).response()

    @app.exception_handler(WriteError)
    @app.exception_handler(OSError)
    async def unusable(request: Request, error: OSError) -> JSONResponse:
        log("folder cannot be used", error=str(error))
        cause = error.__cause__ if isinstance(error, WriteError) else error  # whose words name no path
        reason = getattr(cause, "strerror", None) or "it cannot be read or written"
        message = f"the server's folder of tasks cannot be used: {reason}"
        return ProblemError(503, "bad_folder", message).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return ProblemError(422, "invalid", "the request does not fit its schema", _places(error)).response()

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        kind = TYPES.get(error.status_code, "http")
        answer = ProblemError(error.status_code, kind, str(error.detail)).response()
        answer.headers.update(error.headers or {})
        return answer


def _places(error: RequestValidationError) -> list[dict[str, Any]]:
    """Where a request is wrong and how; what was sent is not sent back.

    Of a value that may be of several kinds each kind complains: places with another within are left out.
    """
    found = [(_place(item, error.body), item["msg"]) for item in error.errors()]
    within = {place[:depth] for place, _ in found for depth in range(len(place))}
    return [
        {"at": ".".join(map(str, place))[:200], "message": message[:500]}
        for place, message in found
        if place not in within
    ][:20]


def _place(item: Mapping[str, Any], body: Any) -> tuple[int | str, ...]:
    """The parts that stand in the request, or lack at its end; not the names of schemas between them."""
    parts: Sequence[int | str] = item["loc"]
    if parts[0] != "body":
        return tuple(parts)
    kept: list[int | str] = ["body"]
    for part in parts[1:]:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            if item["type"] != "missing" or part != parts[-1]:
                continue
        kept.append(part)
    return tuple(kept)
