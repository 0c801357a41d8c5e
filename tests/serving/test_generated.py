"""Requests made from the server's own OpenAPI document: each gets an answer that the document foresees.

The suite sends a few; ten thousand take some minutes:

    MP2_GENERATED=10000 python -m pytest tests/serving/test_generated.py
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mp2.model.checkpoint import Base
from mp2.runtime import write_json
from mp2.serving.jobs import Job, Quota
from mp2.serving.service import Service, Settings
from tests.serving.kit import folder
from tests.serving.live import Client, in_thread

COUNT = int(os.environ.get("MP2_GENERATED", "150"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
JOB = "0123456789abcdef"


@pytest.fixture
def running(base: Base, tmp_path: Path) -> Iterator[tuple[Client, Service]]:
    """A server with three tasks and an ended job; it takes no new jobs, since a worker is no part of this."""
    path = folder(base, tmp_path / "tasks")
    job = replace(Job("shop", "", "mp2-deep-gd", 1, 0.25, replace=False), id=JOB, status="cancelled")
    (path / ".jobs" / JOB).mkdir(parents=True)
    write_json(path / ".jobs" / JOB / "job.json", asdict(job))
    with in_thread(Settings(path, str(base.path), quota=Quota(queued=0)), base) as found:
        yield found


def cases(schema: schemathesis.BaseSchema) -> SearchStrategy[Case]:
    """Requests of all operations, right ones and wrong ones; those with more to get wrong more often."""
    strategies: list[SearchStrategy[Case]] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        named = bool(len(operation.path_parameters) or len(operation.query))
        strategies.append(operation.as_strategy(GenerationMode.POSITIVE))
        if operation.body or named:
            modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] * (3 if operation.body else 1)
            strategies += [operation.as_strategy(mode) for mode in modes]
    assert len(strategies) > 20
    return st.one_of(strategies)


def at_home(case: Case, name: str | None, busy: bool) -> None:
    """Let a request speak of a task that exists, and give it time: a missed deadline is rightly a 504.

    Where the server is too busy to try anything, a request keeps the deadline it was made with.
    """
    if name is not None and case.method != "DELETE":
        if "task" in case.path_parameters:
            case.path_parameters["task"] = name
        if "job" in case.path_parameters:
            case.path_parameters["job"] = JOB
    if not isinstance(case.body, dict):
        return
    if not busy and isinstance(case.body.get("timeout_ms", 5000), int):
        case.body["timeout_ms"] = 60_000
    if name is not None and isinstance(case.body.get("requests"), list):
        for item in case.body["requests"]:
            if isinstance(item, dict):
                item["task"] = name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::hypothesis.errors.HypothesisWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_no_generated_request_ends_in_a_server_error(running: tuple[Client, Service], busy: bool) -> None:
    call, service = running
    if busy:
        service.batcher._cost = 10**9  # as if so many characters waited: nothing is tried
    address = f"http://127.0.0.1:{call.port}"
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    seen: Counter[int] = Counter()

    with requests.Session() as session:

        @settings(
            max_examples=COUNT, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=cases(schema), name=st.sampled_from([None, "reviews", "pairs", "targets"]))
        def ask(case: Any, name: str | None) -> None:
            at_home(case, name, busy)
            response = case.call(base_url=address, session=session)
            seen[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        ask()
    print(f"{seen.total()} requests{', too busy to answer' * busy}: {dict(sorted(seen.items()))}")
    assert seen.total() >= 0.9 * COUNT and seen[200] and seen[422]
    assert not busy or seen[429]
    assert call("GET", "/v1/tasks").json["tasks"] == ["pairs", "reviews", "targets"]
