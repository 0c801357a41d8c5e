"""Routes that answer texts: one task, or many in one request."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.types import Scope

from mp2.errors import CheckpointError, Mp2Error
from mp2.serving.batcher import Outcome
from mp2.serving.edge import BEGAN, FACTS
from mp2.serving.problem import ProblemError
from mp2.serving.routes.access import Caller, ServiceOf, refusals
from mp2.serving.schemas import MixedBody, PredictBody, PredictResponse
from mp2.serving.service import Service

router = APIRouter(prefix="/v1", tags=["answers"])
COMMON = (400, 401, 408, 413, 422, 429, 503, 504)


@router.post("/tasks/{task}/predict", response_model=PredictResponse, responses=refusals(404, *COMMON))
async def predict(
    task: str, body: PredictBody, request: Request, service: ServiceOf, key: Caller
) -> JSONResponse:
    """Answer one or many inputs of a task."""
    if not service.predictor.knows(task):
        raise unknown(task)
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    request.scope[FACTS].update(task=task, rows=len(inputs))
    rows, seconds = [(task, item) for item in inputs], left(request.scope, body.timeout_ms)
    outcomes = await service.batcher.submit(rows, seconds)
    problems = [
        (index, _problem(service, task, outcome))
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Mp2Error)
    ]
    if problems:
        worst = max((problem for _, problem in problems), key=lambda problem: problem.status)
        details = [{"index": index, "message": str(problem)} for index, problem in problems]
        raise ProblemError(worst.status, worst.kind, str(worst), details)
    return JSONResponse({"predictions": [_shown(service, task, outcome) for outcome in outcomes]})


@router.post("/predict", response_model=PredictResponse, responses=refusals(*COMMON))
async def predict_mixed(body: MixedBody, request: Request, service: ServiceOf, key: Caller) -> JSONResponse:
    """Answer inputs of any tasks; an input that cannot be answered gets an error in its place."""
    request.scope[FACTS].update(rows=len(body.requests))
    # the nearest of many names takes long to find, in the thread that answers everybody, and is not sent
    known = {name for name in {item.task for item in body.requests} if service.predictor.knows(name)}
    rows = [(item.task, item.input) for item in body.requests if item.task in known]
    seconds = left(request.scope, body.timeout_ms)
    outcomes = iter(await service.batcher.submit(rows, seconds) if rows else [])
    shown = [
        {"task": item.task, **_shown(service, item.task, next(outcomes) if item.task in known else None)}
        for item in body.requests
    ]
    return JSONResponse({"predictions": shown})


def unknown(task: str) -> ProblemError:
    """The answer for a task that does not exist."""
    return ProblemError(404, "unknown_task", f"no task {task[:80]!r}; GET /v1/tasks lists them")


def left(scope: Scope, timeout_ms: int) -> float:
    """Seconds that are left of a deadline, which counts from when the request came."""
    began: float = scope[BEGAN]
    return max(0.001, began + timeout_ms / 1000 - time.monotonic())


def _shown(service: Service, task: str, outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"error": unknown(task).body()}
    if isinstance(outcome, Mp2Error):
        return {"error": _problem(service, task, outcome).body()}
    return outcome.as_dict()


def _problem(service: Service, task: str, error: Mp2Error) -> ProblemError:
    if not isinstance(error, CheckpointError):
        return ProblemError(422, "invalid", str(error))
    if not service.predictor.knows(task):
        return unknown(task)
    return ProblemError(503, "bad_adapter", str(error))
