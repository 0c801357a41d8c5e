"""Routes that list, show, fetch and delete tasks, and check examples for new ones."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mp2.errors import CheckpointError
from mp2.model.checkpoint import ASSETS
from mp2.serving import schemas
from mp2.serving.card import card
from mp2.serving.edge import FACTS
from mp2.serving.examples import Checked, check, summary
from mp2.serving.problem import ProblemError
from mp2.serving.routes.access import Caller, ServiceOf, Tuner, refusals
from mp2.serving.routes.predict import unknown
from mp2.serving.service import Service
from mp2.tuning.default import default_method
from mp2.tuning.methods import DEFAULT_METHOD, METHODS
from mp2.tuning.parts import lacking

router = APIRouter(prefix="/v1", tags=["tasks"])
ASKED = (401, 429, 503)
BLOCK = 1 << 16


@router.get("", responses=refusals(422))
def about(service: ServiceOf) -> dict[str, Any]:
    """What this server is: version, base, methods, limits. Needs no key, and says whether others do."""
    gone = lacking(service.base, METHODS.values())
    return {
        "version": version("mp2"),
        "base": service.base.name,
        "banks": list(service.base.banks),
        "needs_key": service.keys is not None,
        "tune": service.settings.tune,
        "default_method": DEFAULT_METHOD,
        "methods": [{"name": m.name, "about": m.about} for m in METHODS.values() if m.name not in gone],
        "limits": {
            "text_characters": schemas.TEXT_CHARACTERS,
            "rows_per_request": schemas.ROWS_PER_REQUEST,
            "examples": schemas.EXAMPLES,
            "upload_characters": schemas.UPLOAD_CHARACTERS,
            "body_bytes": service.settings.body_bytes,
        },
    }


@router.get("/tasks", response_model=schemas.TaskList, responses=refusals(422, *ASKED))
def tasks(
    service: ServiceOf,
    key: Caller,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Names of the tasks, sorted, a page at a time."""
    names = service.predictor.tasks
    return {"tasks": list(names[offset : offset + limit]), "total": len(names)}


@router.get("/tasks/{task}", response_model=schemas.Card, responses=refusals(404, 422, *ASKED))
def show(task: str, request: Request, service: ServiceOf, key: Caller) -> JSONResponse:
    """The card of a task: what it reads and answers, its scores, its router and the tasks it resembles."""
    folder = service.store.find(task)
    if folder is None:
        raise unknown(task)
    request.scope[FACTS].update(task=task)
    try:
        return JSONResponse(card(task, folder, service.base))
    except (CheckpointError, TypeError, ValueError, KeyError, OSError) as error:
        reason = str(error).removeprefix(f"task {task!r}: ").replace(str(folder), task)
        raise ProblemError(503, "bad_adapter", f"task {task!r} cannot be shown: {reason}") from None


@router.get(
    "/tasks/{task}/adapter.zip",
    responses=refusals(404, 422, *ASKED) | {200: {"content": {"application/zip": {}}}},
    response_class=Response,
)
def fetch(task: str, request: Request, service: ServiceOf, key: Caller) -> StreamingResponse:
    """The adapter as a zip file: unpacked, it is a folder for ``mp2 predict``."""
    file = tempfile.SpooledTemporaryFile(max_size=16 << 20)  # noqa: SIM115 (closed when it has been sent)
    try:
        if not service.store.archive(task, file):
            raise unknown(task)
    except BaseException:
        file.close()
        raise
    request.scope[FACTS].update(task=task)
    headers = {"content-disposition": f'attachment; filename="{task}.zip"'}
    return StreamingResponse(_blocks(file), media_type="application/zip", headers=headers)


@router.delete("/tasks/{task}", status_code=204, responses=refusals(403, 404, 422, *ASKED))
def delete(task: str, request: Request, service: ServiceOf, key: Tuner) -> Response:
    """Delete a task and its adapter."""
    if not service.store.delete(task):
        raise unknown(task)
    request.scope[FACTS].update(task=task)
    service.predictor.remove(task)
    return Response(status_code=204)


@router.post(
    "/check", response_model=schemas.CheckReport, responses=refusals(400, 403, 408, 413, 422, *ASKED)
)
async def check_examples(
    body: schemas.CheckBody, request: Request, service: ServiceOf, key: Tuner
) -> dict[str, Any]:
    """Check examples without tuning: the task they speak of, their labels, and what is wrong with them."""
    checked, report = await asyncio.to_thread(checked_upload, service, body)
    request.scope[FACTS].update(rows=len(checked.rows))
    return report


@router.get("/samples", responses=refusals(422))
def samples() -> list[dict[str, str]]:
    """Small invented files of examples to try. Needs no key."""
    return _samples()


def checked_upload(service: Service, body: schemas.CheckBody) -> tuple[Checked, dict[str, Any]]:
    """Parse and check what a request brings, and say what was found."""
    upload = body.examples if isinstance(body.examples, schemas.Upload) else None
    checked = check(
        body.name,
        body.examples if isinstance(body.examples, list) else None,
        (upload.format, upload.content) if upload else None,
        body.task_file,
        most=schemas.EXAMPLES,
        encoder=service.base.encoder(),
    )
    task = checked.task
    suits = default_method(service.base, task).name if task is not None else None
    return checked, summary(checked, body.held_back, body.seed) | {"method": suits}


@cache
def _samples() -> list[dict[str, str]]:
    return [
        {"name": file.parent.name, "format": "csv", "content": file.read_text(encoding="utf-8")}
        for file in sorted((ASSETS / "demo").glob("*/train.csv"))
    ]


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while block := file.read(BLOCK):
            yield block
