"""Tuning in the background, with real workers, over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mp2.errors import CheckpointError, ConfigError, WriteError
from mp2.model.checkpoint import Base
from mp2.runtime import write_json
from mp2.serving.jobs import Job, Jobs, Quota, hold
from mp2.serving.keys import add_key
from mp2.serving.service import Settings
from mp2.serving.store import Store
from mp2.serving.worker import run, wilson
from mp2.tasks.infer import dump_task
from mp2.tuning.adapter import load_adapter
from tests.serving.kit import REVIEWS, folder
from tests.serving.live import Client, in_process, in_thread
from tests.tuning.test_default import taught

ROWS = [
    {"text": f"这家店{'好' if n % 2 else '坏'}{'的' * (n // 2)}", "label": "好坏"[n % 2]} for n in range(16)
]
BODY = {"name": "shop", "examples": ROWS, "seed": 1}


@pytest.fixture
def call(base: Base, tmp_path: Path) -> Iterator[Client]:
    settings = Settings(folder(base, tmp_path / "tasks"), str(base.path), quota=Quota(per_key=3))
    with in_thread(settings, base) as (client, _):
        yield client


def test_examples_become_a_task_that_answers(call: Client, tmp_path: Path) -> None:
    stopped = call("POST", "/v1/tasks", {**BODY, "name": "stopped"}).json["id"]
    reply = call("POST", "/v1/tasks", {**BODY, "calibrate": True})
    id_ = reply.json["id"]
    assert (reply.status, reply.json["status"], reply.headers["location"]) == (
        202,
        "queued",
        f"/v1/jobs/{id_}",
    )
    assert call("POST", "/v1/tasks", BODY).status == 409  # the name is being made
    waiting = call("POST", "/v1/tasks", {**BODY, "name": "waiting"}).json
    assert call("DELETE", f"/v1/jobs/{waiting['id']}").json["status"] == "cancelled"
    while call("GET", f"/v1/jobs/{stopped}").json["status"] != "running":
        time.sleep(0.05)
    assert call("DELETE", f"/v1/jobs/{stopped}").json["status"] == "cancelled"

    events = list(call.events(f"/v1/jobs/{id_}/events"))
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "status" and kinds[-1] == "end" and events[-1][1]["status"] == "done"
    assert {record["stage"] for kind, record in events if kind == "progress"} == {-1, 0, 1}
    state = call("GET", f"/v1/jobs/{id_}").json
    assert state["progress"] == [record for kind, record in events if kind == "progress"]
    held = state["result"]["held_back"]
    assert held["count"] == 4 and 0 <= held["low"] <= held["value"] <= held["high"] <= 1
    for row in held["rows"]:
        assert row["expected"] == ROWS[row["row"] - 1]["label"] and row["answer"] in ("好", "坏")

    assert len(load_adapter(tmp_path / "tasks" / "shop").label_offsets) == 2
    card = call("GET", "/v1/tasks/shop").json
    assert card["held_back"]["count"] == 4 and "rows" not in card["held_back"]
    assert len(card["router"]["weights"]) == 3 and card["shots"] == 8
    found = call("POST", "/v1/tasks/shop/predict", {"inputs": "这家店好"}).json["predictions"][0]
    assert found["label"] in ("好", "坏")
    assert not list((tmp_path / "tasks" / ".jobs").glob("*/rows.json"))  # examples are not kept
    assert call("POST", "/v1/tasks", BODY).status == 409  # the name is taken
    assert call("DELETE", f"/v1/jobs/{stopped}").json["status"] == "cancelled"
    assert call("GET", "/v1/tasks").json["tasks"] == ["pairs", "reviews", "shop", "targets"]
    listed = call("GET", "/v1/jobs").json["jobs"]
    assert [job["name"] for job in listed] == ["waiting", "shop", "stopped"]
    assert listed[1] == {key: value for key, value in state.items() if key not in ("progress", "result")}


def test_what_cannot_be_tuned_is_refused_before_it_is_queued(call: Client) -> None:
    def post(**changes: Any) -> tuple[int, str, str]:
        reply = call("POST", "/v1/tasks", {**BODY, **changes})
        return reply.status, reply.json["error"]["type"], reply.json["error"]["message"]

    assert post(method="mp2-deep-gb")[:2] == (422, "invalid")
    assert "mp2-deep-gd" in post(method="mp2-deep-gb")[2]
    assert post(examples=ROWS[:2])[:2] == (422, "bad_examples")
    assert post(examples=[*ROWS, {"text": "x", "label": None}])[:2] == (422, "bad_examples")
    for name in ("../x", "a/b", "", ".jobs", "A", "x" * 65, "名"):
        assert post(name=name)[:2] == (422, "invalid")
    assert "prefers no label" in post(method="setfit", calibrate=True)[2]
    assert call("GET", "/v1/jobs").json["jobs"] == []


def test_labels_choose_the_method_where_none_is_named(base: Base, tmp_path: Path) -> None:
    other = taught(base, tmp_path / "base", "chnsent", "tnews")
    settings = Settings(tmp_path / "tasks", str(other.path))
    known = [{**row, "label": {"好": "正面", "坏": "负面"}.get(row["label"], row["label"])} for row in ROWS]
    with in_thread(settings, other) as (call, _):
        for name, rows, method in (("a", ROWS, "mp2-deep-labels"), ("b", known, "mp2-deep-gd")):
            assert call("POST", "/v1/check", {"examples": rows}).json["method"] == method
            assert call("POST", "/v1/tasks", {"name": name, "examples": rows}).json["method"] == method
        named = {"name": "c", "examples": ROWS, "method": "lora"}
        assert call("POST", "/v1/tasks", named).json["method"] == "lora"


def test_quotas_and_whose_job_it_is(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    anna, bert = add_key(file, "anna"), add_key(file, "bert")
    settings = Settings(tmp_path / "tasks", str(base.path), keys=file, quota=Quota(queued=2, per_key=1))
    with in_thread(settings, base) as (call, _):
        a = Client(call.port, {"authorization": f"Bearer {anna}"})
        b = Client(call.port, {"authorization": f"Bearer {bert}"})
        mine = a("POST", "/v1/tasks", {**BODY, "name": "one"}).json["id"]
        reply = a("POST", "/v1/tasks", {**BODY, "name": "two"})
        assert (reply.status, reply.json["error"]["type"]) == (429, "busy") and reply.headers["retry-after"]
        assert reply.json["error"]["message"].startswith("1 tuning jobs of yours")
        assert b("POST", "/v1/tasks", {**BODY, "name": "two"}).status == 202
        other = Client(call.port, {"authorization": f"Bearer {add_key(file, 'cleo')}"})
        full = other("POST", "/v1/tasks", {**BODY, "name": "three"}).json["error"]["message"]
        assert full == "2 tuning jobs of all callers are waiting or running, the most is 2"
        assert b("GET", f"/v1/jobs/{mine}").status == b("DELETE", f"/v1/jobs/{mine}").status == 404
        assert [job["name"] for job in b("GET", "/v1/jobs").json["jobs"]] == ["two"]
        assert a("GET", f"/v1/jobs/{mine}").status == 200


def one(tmp_path: Path, base: str | None, quota: Quota, patience: float = 300) -> dict[str, Any]:
    """Run one job without HTTP and return its state."""

    async def scene() -> dict[str, Any]:
        jobs = Jobs(Store(tmp_path), base, quota)
        jobs.start()
        job = jobs.submit(Job("shop", "", "mp2-deep-gd", 1, 0.25, replace=False), dump_task(REVIEWS), ROWS)
        async with asyncio.timeout(patience):
            async for event in jobs.events(job.id):
                if event is not None and event[0] == "end":
                    break
        await jobs.close()
        return jobs.state(jobs.all()[0])

    return asyncio.run(scene())


def test_a_job_that_takes_too_long_is_stopped(base: Base, tmp_path: Path) -> None:
    late = one(tmp_path, str(base.path), Quota(seconds=0.05))
    assert late["status"] == "failed" and "stopped after" in late["error"]


def test_a_job_cancelled_while_its_worker_starts_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.create_subprocess_exec

    async def scene() -> int | None:
        jobs, started = Jobs(Store(tmp_path), None), list[asyncio.subprocess.Process]()

        async def slow(*_: str, **pipes: Any) -> asyncio.subprocess.Process:
            assert jobs.cancel(job.id).status == "cancelled"
            started.append(await begin(sys.executable, "-c", "import time; time.sleep(300)", **pipes))
            return started[0]

        monkeypatch.setattr("mp2.serving.jobs.asyncio.create_subprocess_exec", slow)
        job = jobs.submit(Job("shop", "", "m", 1, 0.25, replace=False), "", [])
        await asyncio.wait_for(jobs._one(job), 60)
        return started[0].returncode

    assert asyncio.run(scene()) == -signal.SIGKILL


def test_a_worker_says_why_it_cannot_run(tmp_path: Path) -> None:
    write_json(tmp_path / "job.json", {"held_back": 0.25, "seed": 1, "method": "mp2-deep-gd"})
    write_json(tmp_path / "rows.json", {"task": dump_task(REVIEWS), "rows": ROWS})
    with pytest.raises(CheckpointError, match="none"):
        run(tmp_path, str(tmp_path / "none"))


def test_a_killed_worker_is_reported(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os\nos.kill(os.getpid(), 9)\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr("mp2.serving.jobs.sys.executable", str(program))
    state = one(tmp_path / "tasks", str(base.path), Quota())
    assert state["status"] == "failed" and "exit code -9" in state["error"]


def stop_under_load(call: Client, process: subprocess.Popen[str]) -> None:
    """SIGTERM: what was accepted is answered, the rest is refused, nothing breaks in the middle."""
    body = {"inputs": ["味道很好" * 400] * 256, "timeout_ms": 60_000}

    def ask(_: int) -> int:
        try:
            return call("POST", "/v1/tasks/reviews/predict", body).status
        except ConnectionRefusedError:
            return 0  # it had stopped listening

    with ThreadPoolExecutor(4) as pool:
        replies = pool.map(ask, range(4))
        while "mp2_queue_rows 0.0" in call("GET", "/metrics").body.decode():
            time.sleep(0.01)
        process.terminate()
        assert set(replies) <= {200, 429, 0}
    assert process.wait(300) in (0, -signal.SIGTERM)


def test_a_server_killed_during_a_job_takes_it_up_again(base: Base, tmp_path: Path) -> None:
    tasks = folder(base, tmp_path / "tasks")
    with in_process(tasks, "--model", str(base.path)) as (call, process):
        before = call("POST", "/v1/tasks/reviews/predict", {"inputs": "好"}).body
        id_ = call("POST", "/v1/tasks", BODY).json["id"]
        while call("GET", f"/v1/jobs/{id_}").json["status"] != "running":
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert json.loads((tasks / ".jobs" / id_ / "job.json").read_text(encoding="utf-8"))["status"] == "running"
    assert {path.name for path in tasks.iterdir()} >= {"pairs", "reviews", "targets"}
    with in_process(tasks, "--model", str(base.path)) as (call, process):
        assert call.job(id_)["status"] == "done"
        assert call("POST", "/v1/tasks/reviews/predict", {"inputs": "好"}).body == before
        assert call("POST", "/v1/tasks/shop/predict", {"inputs": "这家店好"}).status == 200
        stop_under_load(call, process)
    assert load_adapter(tasks / "shop").task.name == "shop"
    assert json.loads((tasks / ".jobs" / id_ / "job.json").read_text(encoding="utf-8"))["attempts"] == 2


def test_a_job_that_was_started_too_often_is_reported_lost(base: Base, tmp_path: Path) -> None:
    async def scene() -> dict[str, Any]:
        jobs = Jobs(Store(tmp_path), str(base.path))
        job = Job("shop", "", "mp2-deep-gd", 1, 0.25, replace=False)
        jobs.submit(job, dump_task(REVIEWS), ROWS)
        jobs._set(job, status="running", attempts=3)
        later = Jobs(Store(tmp_path), str(base.path))
        later.start()
        async for event in later.events(job.id):
            if event is not None and event[0] == "end":
                break
        await later.close()
        return later.state(later.all()[0])

    state = asyncio.run(scene())
    assert state["status"] == "failed" and state["error"].startswith("lost")


def test_a_finished_adapter_that_was_not_moved_yet_is_moved(base: Base, tmp_path: Path) -> None:
    async def scene() -> None:
        jobs = Jobs(Store(tmp_path), None)
        job = jobs.submit(Job("shop", "", "m", 1, 0.25, replace=False), dump_task(REVIEWS), ROWS)
        (jobs.folder / job.id / "result.json").write_text("{}", encoding="utf-8")
        folder(base, jobs.folder / job.id / "made")
        os.rename(jobs.folder / job.id / "made" / "reviews", jobs.folder / job.id / "adapter")
        jobs.start()
        async for event in jobs.events(job.id):
            if event is not None and event[0] == "end":
                assert event[1]["status"] == "done"
                break
        await jobs.close()

    asyncio.run(scene())
    assert load_adapter(tmp_path / "shop").task.name == "reviews"


def test_wilsons_interval() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = wilson(1.0, 8)
    assert 0.6 < low < 0.7 and high == pytest.approx(1)


def test_one_server_alone_runs_the_jobs_of_a_folder(base: Base, tmp_path: Path) -> None:
    tasks = folder(base, tmp_path / "tasks")
    with hold(tasks), pytest.raises(ConfigError, match="another server tunes tasks in this folder"):
        hold(tasks)
    hold(tasks).close()
    job = Job("shop", "", "mp2-deep-gd", 1, 0.25, False, status="running", attempts=1)
    file = tasks / ".jobs" / job.id / "job.json"
    file.parent.mkdir()
    write_json(file, asdict(job))
    before = file.read_bytes()
    with in_thread(Settings(tasks, str(base.path), tune=False), base):
        pass
    assert file.read_bytes() == before  # it is another server's


def test_a_job_that_cannot_be_written_is_not_queued(
    call: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise WriteError(f"{path}: cannot be written: no space left") from OSError(28, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr("mp2.serving.jobs.write_json", full)
        reply = call("POST", "/v1/tasks", BODY)
    assert reply.status == 503 and reply.json["error"]["type"] == "bad_folder"
    assert "No space left" in reply.json["error"]["message"] and str(tmp_path) not in str(reply.json)
    assert call("GET", "/v1/jobs").json["jobs"] == []
    assert call("POST", "/v1/tasks", BODY).status == 202
