"""Routes that make a task of examples in the background, and follow and stop that."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mp2.serving import schemas
from mp2.serving.edge import FACTS
from mp2.serving.jobs import Job
from mp2.serving.keys import Key
from mp2.serving.problem import ProblemError
from mp2.serving.routes.access import Caller, ServiceOf, Tuner, refusals
from mp2.serving.routes.tasks import ASKED, checked_upload
from mp2.serving.service import Service
from mp2.tasks.infer import dump_task
from mp2.tuning.methods import get_method
from mp2.tuning.parts import check_parts
from mp2.tuning.tune import check_calibrate, check_family

router = APIRouter(prefix="/v1", tags=["tuning"])
HEARTBEAT = 10.0  # seconds of silence after which a stream says that it lives


@router.post(
    "/tasks",
    status_code=202,
    response_model=schemas.JobState,
    responses=refusals(400, 403, 408, 409, 413, 422, *ASKED),
)
async def tune(body: schemas.TuneBody, request: Request, service: ServiceOf, key: Tuner) -> JSONResponse:
    """Make a task of examples, in the background: returns the job at once."""
    request.scope[FACTS].update(task=body.name)
    if body.method is not None:
        check_parts(service.base, [get_method(body.method)])
    _free(service, body)
    checked, report = await asyncio.to_thread(checked_upload, service, body)
    if not report["usable"] or checked.task is None or checked.problems:
        message = "the examples cannot be used as they are; POST /v1/check shows how they were understood"
        raise ProblemError(422, "bad_examples", message, report["problems"])
    method = get_method(body.method or report["method"])
    check_parts(service.base, [method])
    check_family(method, checked.task)
    if body.calibrate:
        check_calibrate(method, checked.task)
    _free(service, body)  # another request may have been quicker
    owner = key.name if key else ""
    job = Job(
        body.name,
        owner,
        method.name,
        body.seed,
        body.held_back,
        replace=body.replace,
        calibrate=body.calibrate,
    )
    service.jobs.submit(job, dump_task(checked.task), checked.rows)
    request.scope[FACTS].update(job=job.id, rows=len(checked.rows))
    state = service.jobs.state(job)
    return JSONResponse(state, 202, {"location": f"/v1/jobs/{job.id}"})


@router.get("/jobs", response_model=schemas.JobList, responses=refusals(*ASKED))
async def jobs(service: ServiceOf, key: Caller) -> JSONResponse:
    """The caller's jobs and how they stand, the newest first."""
    mine = [job for job in service.jobs.all() if _owns(key, job)]
    return JSONResponse({"jobs": [service.jobs.summary(job) for job in mine]})


@router.get("/jobs/{job}", response_model=schemas.JobState, responses=refusals(404, 422, *ASKED))
async def state(job: str, service: ServiceOf, key: Caller) -> JSONResponse:
    """How a job stands, with its progress so far and, at its end, its result."""
    return JSONResponse(service.jobs.state(_job(service, key, job)))


@router.delete("/jobs/{job}", response_model=schemas.JobState, responses=refusals(403, 404, 422, *ASKED))
async def cancel(job: str, service: ServiceOf, key: Tuner) -> JSONResponse:
    """Stop a job; one that has ended stays as it is."""
    found = _job(service, key, job)
    return JSONResponse(service.jobs.state(service.jobs.cancel(found.id)))


@router.get(
    "/jobs/{job}/events",
    responses=refusals(404, 422, *ASKED) | {200: {"content": {"text/event-stream": {}}}},
    response_class=Response,
)
async def events(job: str, service: ServiceOf, key: Caller) -> StreamingResponse:
    """A job's life as server-sent events: ``status``, ``progress`` for each dev score, at last ``end``."""
    found = _job(service, key, job)
    return StreamingResponse(
        _stream(service, found.id), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


async def _stream(service: Service, id_: str) -> AsyncIterator[str]:
    said = time.monotonic()
    async for event in service.jobs.events(id_):
        if event is not None:
            kind, data = event
            said = time.monotonic()
            yield f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        elif time.monotonic() - said > HEARTBEAT:
            said = time.monotonic()
            yield ": still here\n\n"


def _owns(key: Key | None, job: Job) -> bool:
    return key is None or job.owner == key.name


def _job(service: Service, key: Key | None, id_: str) -> Job:
    job = service.jobs.get(id_)
    if job is None or not _owns(key, job):
        raise ProblemError(404, "unknown_job", f"no job {id_[:40]!r}")
    return job


def _free(service: Service, body: schemas.TuneBody) -> None:
    """Refuse a name that is taken."""
    if service.jobs.making(body.name) is not None:
        raise ProblemError(409, "taken", f"a job is making task {body.name!r} already")
    if service.store.foreign(body.name):
        message = f"the server's folder has a {body.name!r} that is no task; choose another name"
        raise ProblemError(409, "taken", message)
    if service.store.find(body.name) is not None and not body.replace:
        message = f"task {body.name!r} exists; delete it, choose another name, or send replace: true"
        raise ProblemError(409, "taken", message)
