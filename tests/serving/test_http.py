"""The HTTP API over a real socket."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import mp2.serving.server
from mp2.errors import CheckpointError
from mp2.evaluation.inspect import adapter_router, inspect_router
from mp2.model.checkpoint import Base
from mp2.serving.batcher import Outcome
from mp2.serving.edge import LOG
from mp2.serving.predictor import Predictor, Row
from mp2.serving.service import Service, Settings
from mp2.serving.store import Store
from mp2.tuning.adapter import load_adapter
from tests.serving.kit import REVIEWS, ROWS, Stated, adapter, folder
from tests.serving.live import Client, in_thread

Running = tuple[Client, Service]


@pytest.fixture(scope="module")
def running(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = folder(base, tmp_path_factory.mktemp("adapters"))
    with in_thread(Settings(path, str(base.path), body_bytes=1 << 20, stall=0.5), base) as found:
        yield found


@pytest.fixture
def call(running: Running) -> Client:
    return running[0]


def test_a_text_a_row_and_a_list_of_them_are_answered(base: Base, running: Running) -> None:
    call, service = running
    expected = Predictor(base, folder=service.store)
    one = call("POST", "/v1/tasks/reviews/predict", {"inputs": "味道很好"})
    assert one.status == 200 and len(one.json["predictions"]) == 1
    many = call("POST", "/v1/tasks/reviews/predict", {"inputs": ["味道很好", {"text": "太慢"}]}).json
    found = expected.predict([("reviews", "味道很好"), ("reviews", "太慢")])
    assert [p["label"] for p in many["predictions"]] == [p.answer.text for p in found]
    pair = call("POST", "/v1/tasks/pairs/predict", {"inputs": ROWS["pair"][0]}).json["predictions"][0]
    assert set(pair["scores"]) == {"矛盾", "相似"}
    text = "上海的咖啡店很好"
    span = call("POST", "/v1/tasks/targets/predict", {"inputs": text}).json["predictions"][0]
    assert text[span["span"]["start"] : span["span"]["end"]] == span["answer"]


def test_one_request_may_ask_many_tasks_and_errors_stand_in_their_place(call: Client) -> None:
    asked = [("reviews", "好"), ("none", "好"), ("pairs", ROWS["pair"][0]), ("reviews", {"wrong": "x"})]
    reply = call("POST", "/v1/predict", {"requests": [{"task": t, "input": i} for t, i in asked]})
    assert reply.status == 200
    kinds = [p.get("error", {}).get("type") for p in reply.json["predictions"]]
    assert kinds == [None, "unknown_task", None, "invalid"]


def test_names_that_nobody_knows_take_no_turn(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    call, service = running
    answer, asked = service.batcher._answer, list[Row]()
    monkeypatch.setattr(service.batcher, "_answer", lambda rows: asked.extend(rows) or answer(rows))
    for names in (["none", "reviews", "no"], ["none", "no"]):
        reply = call("POST", "/v1/predict", {"requests": [{"task": name, "input": "好"} for name in names]})
        shown = {p["task"]: p.get("error", {}).get("type") for p in reply.json["predictions"]}
        assert shown == {name: None if name == "reviews" else "unknown_task" for name in names}
    assert asked == [("reviews", "好")]


def test_concurrent_requests_are_answered_in_shared_batches(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, service = running
    answer, batches, gathered = service.batcher._answer, list[int](), threading.Event()

    def once_gathered(rows: Sequence[Row]) -> Sequence[Outcome]:
        batches.append(len(rows))
        assert gathered.wait(60)
        return answer(rows)

    monkeypatch.setattr(service.batcher, "_answer", once_gathered)
    monkeypatch.setattr(service.batcher, "speed", Stated(0.0))
    body: dict[str, Any] = {
        "requests": [{"task": "reviews", "input": "好"}, {"task": "targets", "input": "上海的店"}]
    }
    body["timeout_ms"] = 60_000
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(call, "POST", "/v1/predict", body) for _ in range(16)]
        while sum(batches) + service.batcher.queued < 32:
            assert not any(reply.done() for reply in asked)
            threading.Event().wait(0.01)
        gathered.set()
        replies = [reply.result() for reply in asked]
    assert {reply.status for reply in replies} == {200} and len({reply.body for reply in replies}) == 1
    assert sum(batches) == 32 and len(batches) <= 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/v1/tasks/none/predict", {"inputs": "x"}, 404, "unknown_task"),
        ("POST", "/v1/tasks/..%2Freviews/predict", {"inputs": "x"}, 404, "not_found"),
        ("POST", "/v1/tasks/%2e%2e/predict", {"inputs": "x"}, 404, "unknown_task"),
        ("POST", "/v1/tasks/.jobs/predict", {"inputs": "x"}, 404, "unknown_task"),
        ("GET", "/v1/tasks/%2e%2e", None, 404, "unknown_task"),
        ("DELETE", "/v1/tasks/%2e%2e", None, 404, "unknown_task"),
        ("GET", "/v1/tasks/%00/adapter.zip", None, 404, "unknown_task"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": []}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": ["x"] * 257}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": "x" * 20_001}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": "\ud83d"}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": {"text": "\ud83d"}}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": {"text": None}}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": {"text": float("nan")}}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": "x", "more": 1}, 422, "invalid"),
        ("POST", "/v1/tasks/pairs/predict", {"inputs": "one text"}, 422, "invalid"),
        ("POST", "/v1/tasks/reviews/predict", {"inputs": "x", "timeout_ms": 0}, 422, "invalid"),
        ("GET", "/v1/tasks?limit=0", None, 422, "invalid"),
        ("GET", "/v1/jobs/../../etc", None, 404, "not_found"),
        ("GET", "/v1/jobs/none", None, 404, "unknown_job"),
        ("PUT", "/v1/tasks", {}, 405, "method_not_allowed"),
        ("GET", "/page/..%2f..%2fapp.py", None, 404, "not_found"),
        ("GET", "/nothing", None, 404, "not_found"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_form(
    call: Client, method: str, path: str, body: object, status: int, kind: str
) -> None:
    reply = call(method, path, body)
    assert (reply.status, reply.json["error"]["type"]) == (status, kind)
    assert reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "at"),
    [
        ("reviews/predict", {"inputs": ["x", "x" * 20_001]}, {"body.inputs.1"}),
        ("reviews/predict", {"inputs": {"text": ["x", {}]}}, {"body.inputs.text.1", "body.inputs.text"}),
        ("reviews/predict", {"inputs": "x", "more": 1}, {"body.more"}),
        ("reviews/predict", {}, {"body.inputs"}),
        ("", {"name": "Bad Name", "examples": []}, {"body.name", "body.examples"}),
        ("", {"name": "x", "examples": {"format": "xls", "content": "a"}}, {"body.examples.format"}),
    ],
)
def test_a_wrong_place_is_one_of_the_request(call: Client, path: str, body: object, at: set[str]) -> None:
    details = call("POST", f"/v1/tasks/{path}".rstrip("/"), body).json["error"]["details"]
    assert {item["at"] for item in details} <= at and details


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe{}", b'{"inputs": "\xff"}', b"[" * 100_000, b"null", b"1e999", b""]
)
def test_bodies_that_are_no_json_are_refused(call: Client, raw: bytes) -> None:
    assert call("POST", "/v1/tasks/reviews/predict", raw=raw).status in (400, 422)
    assert call("POST", "/v1/tasks/reviews/predict", raw=b"{}", content_type="text/plain").status == 422


def test_a_text_of_a_million_characters_is_refused_and_the_client_sees_it(call: Client) -> None:
    text = json.dumps({"inputs": "长" * 1_000_000}).encode()
    reply = call("POST", "/v1/tasks/reviews/predict", raw=text)
    assert (reply.status, reply.json["error"]["type"]) == (413, "too_large")


def test_a_client_that_stalls_is_dropped_and_hurts_nobody(
    call: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp2.serving.server, "HEADER_SECONDS", 0.3)
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with (
        socket.create_connection(("127.0.0.1", call.port)) as silent,
        socket.create_connection(("127.0.0.1", call.port)) as headers,
        socket.create_connection(("127.0.0.1", call.port)) as body,
    ):
        headers.sendall(head)
        body.sendall(head + b'content-length: 50\r\n\r\n{"requ')
        assert call("POST", "/v1/tasks/reviews/predict", {"inputs": "好"}).status == 200
        for stalled in (silent, headers, body):
            stalled.settimeout(60)
        assert body.recv(1000).startswith(b"HTTP/1.1 408")
        assert silent.recv(1000) == b"" and headers.recv(1000) == b""


def test_a_damaged_adapter_among_many_is_named_and_the_others_are_served(
    base: Base, running: Running
) -> None:
    call, service = running
    adapter(base, REVIEWS, 9).save(service.store.folder / "broken")
    file = service.store.folder / "broken" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    reply = call("POST", "/v1/tasks/broken/predict", {"inputs": "好"})
    assert reply.status == 503 and reply.json["error"]["type"] == "bad_adapter"
    assert "broken" in reply.json["error"]["message"] and str(service.store.folder) not in reply.body.decode()
    assert call("GET", "/v1/tasks/broken").status == 503
    (service.store.folder / "broken" / "task.yaml").write_text("name: [x", encoding="utf-8")
    shown = call("GET", "/v1/tasks/broken")
    assert shown.status == 503 and "broken/task.yaml:2: not valid YAML" in shown.json["error"]["message"]
    assert str(service.store.folder) not in shown.body.decode()
    both = {"requests": [{"task": "broken", "input": "好"}, {"task": "reviews", "input": "好"}]}
    found = call("POST", "/v1/predict", both).json["predictions"]
    assert found[0]["error"]["type"] == "bad_adapter" and found[1]["label"]
    assert call("DELETE", "/v1/tasks/broken").status == 204
    assert call("DELETE", "/v1/tasks/broken").status == 404
    assert call("POST", "/v1/tasks/broken/predict", {"inputs": "好"}).status == 404


def test_tasks_are_listed_and_shown(base: Base, running: Running) -> None:
    call, service = running
    assert call("GET", "/v1/tasks").json == {"tasks": ["pairs", "reviews", "targets"], "total": 3}
    assert call("GET", "/v1/tasks?offset=1&limit=1").json == {"tasks": ["reviews"], "total": 3}
    card = call("GET", "/v1/tasks/reviews").json
    assert card["task"]["labels"] == ["好", "坏", "一般"] and card["method"] == "made-router"
    weights = card["router"]["weights"]
    assert (len(weights), len(weights[0])) == (3, 3) and sum(weights[0]) == pytest.approx(1, abs=1e-3)
    assert {item["task"] for item in card["router"]["resembles"]} == {"alpha", "beta"}
    assert call("GET", "/v1/tasks/pairs").json["router"] is None
    made = load_adapter(service.store.folder / "reviews")
    near = inspect_router(
        "reviews", adapter_router(made), base.bank("deep")
    ).nearest  # as 'mp2 inspect' has it
    assert [(item["task"], item["similarity"]) for item in card["router"]["resembles"]] == [
        (name, round(value, 4)) for name, value in near
    ]


def test_an_adapter_can_be_fetched_and_used(base: Base, call: Client, tmp_path: Path) -> None:
    reply = call("GET", "/v1/tasks/reviews/adapter.zip")
    assert reply.headers["content-disposition"] == 'attachment; filename="reviews.zip"'
    zipfile.ZipFile(BytesIO(reply.body)).extractall(tmp_path)
    assert load_adapter(tmp_path / "reviews").task.name == "reviews"


def test_the_server_says_how_it_is(call: Client) -> None:
    assert call("GET", "/healthz").json == {"status": "alive"}
    assert call("GET", "/readyz").status == 200
    about = call("GET", "/v1").json
    assert about["needs_key"] is False and about["base"] == "micro"
    text = call("GET", "/metrics").body.decode()
    assert 'mp2_requests_total{route="/healthz",status="200"}' in text and "mp2_queue_rows 0.0" in text
    schema = call("GET", "/openapi.json").json
    assert {"/v1/predict", "/v1/tasks/{task}/predict", "/v1/check"} <= set(schema["paths"])
    assert schema["components"]["schemas"]["PredictBody"]["examples"]
    assert {sample["name"] for sample in call("GET", "/v1/samples").json} >= {"gym-reviews"}


def test_other_sites_in_the_browser_cannot_reach_a_local_server(call: Client) -> None:
    assert call("GET", "/v1/tasks", host="evil.example").status == 400
    assert call("POST", "/v1/predict", raw=b"{}", content_type="text/plain").status == 422
    reply = call("GET", "/healthz")
    assert reply.headers["x-content-type-options"] == "nosniff" and "access-control" not in str(reply.headers)


def test_the_log_tells_of_requests_and_not_of_texts(call: Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "这句话是秘密"
    with caplog.at_level(logging.INFO, LOG.name):
        call("POST", "/v1/tasks/reviews/predict", {"inputs": [secret, {"wrong": secret}]})
        call("POST", "/v1/tasks/reviews/predict", {"inputs": secret, "more": secret})
        call("POST", "/v1/check", {"examples": [{"text": secret, "label": secret}]})
        call("GET", "/v1/tasks/secret?text=secret")
        call("GET", "/v1/tasks/secret/adapter.zip")
        call("GET", "/healthz")
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    first = next(line for line in lines if line["route"] == "/v1/tasks/{task}/predict")
    assert first["event"] == "request" and first["status"] == 422 and first["rows"] == 2
    assert first["ms"] > 0 and first["task"] == "reviews"
    assert not any(
        secret in record.getMessage() or "secret" in record.getMessage() for record in caplog.records
    )


def test_an_adapter_whose_folder_no_task_can_be_named_by_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Upper", "工单", "lower", ".half", "empty"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "adapter.json").write_text("{}")
    with caplog.at_level(logging.INFO, LOG.name):
        store = Store(tmp_path)
        assert store.names() == ("lower",) and store.find("Upper") is None
        (tmp_path / "other").mkdir()
        store.names()
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert {(line["event"], line["folder"]) for line in lines} == {
        ("not served", "Upper"),
        ("not served", "工单"),
    }
    assert len(lines) == 2


def test_a_folder_that_gets_its_adapter_later_is_listed(base: Base, tmp_path: Path) -> None:
    store = Store(tmp_path / "tasks")
    late = store.folder / "late"
    late.mkdir()
    os.utime(store.folder, ns=(1, 1))  # its last change is long past
    assert store.names() == ()
    adapter(base, REVIEWS, 1).save(tmp_path / "made")
    for file in (tmp_path / "made").iterdir():
        (late / file.name).write_bytes(file.read_bytes())
    assert store.folder.stat().st_mtime_ns == 1 and store.names() == ("late",)


def test_what_is_no_adapter_is_never_replaced(base: Base, running: Running, tmp_path: Path) -> None:
    call, service = running
    other = service.store.folder / "notes"
    other.mkdir()
    (other / "mine.csv").write_text("kept")
    body = {"name": "notes", "replace": True, "examples": [{"text": "好", "label": "好"}]}
    reply = call("POST", "/v1/tasks", body)
    assert reply.status == 409 and "that is no task" in reply.json["error"]["message"]
    adapter(base, REVIEWS, 1).save(tmp_path / "made")
    with pytest.raises(CheckpointError, match="'notes' in the folder of tasks is no adapter"):
        service.store.publish("notes", tmp_path / "made", replace=True)
    assert (other / "mine.csv").read_text() == "kept"
    (other / "mine.csv").unlink()
    service.store.publish("notes", tmp_path / "made")  # an empty folder is nobody's
    assert service.store.delete("notes")


def test_a_folder_that_cannot_be_used_is_told(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    call, service = running

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refuse)
        assert service.store.find("unseen") is not None  # it may be one: asking for it says what is wrong
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "archive", lambda *_: refuse(Path("secret")))
        reply = call("GET", "/v1/tasks/reviews/adapter.zip")
    assert (reply.status, reply.json["error"]["type"]) == (503, "bad_folder")
    assert "secret" not in reply.body.decode() and "Permission denied" in reply.body.decode()


def test_methods_whose_bank_is_absent_are_neither_offered_nor_begun(running: Running) -> None:
    call, _ = running
    assert "poly" not in {method["name"] for method in call("GET", "/v1").json["methods"]}
    body = {"name": "new", "method": "poly", "examples": [{"text": "好", "label": "好"}]}
    reply = call("POST", "/v1/tasks", body)
    assert reply.status == 422 and "no bank of skills 'poly'" in reply.json["error"]["message"]


def test_a_bug_is_logged_by_its_place_and_answered_without_its_message(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, service = running

    def broken(name: str) -> bool:
        raise RuntimeError("a text of the user")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, LOG.name):
        patch.setattr(service.predictor, "knows", broken)
        reply = call("POST", "/v1/tasks/reviews/predict", {"inputs": "好"})
    assert (reply.status, reply.json["error"]["type"]) == (500, "internal")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert (
        "RuntimeError" in logged
        and "test_http.py" in logged
        and "text of the user" not in logged + str(reply)
    )


def test_a_full_queue_answers_429_with_a_time_to_come_back(base: Base, tmp_path: Path) -> None:
    folder(base, tmp_path)
    with in_thread(Settings(tmp_path, queue=4, tune=False), base) as (call, _):
        reply = call("POST", "/v1/tasks/reviews/predict", {"inputs": ["好"] * 5})
        assert (reply.status, reply.json["error"]["type"]) == (429, "busy")
        assert int(reply.headers["retry-after"]) >= 1
        assert call("DELETE", "/v1/tasks/reviews").status == 403
        assert 'mp2_refused_total{reason="busy"} 1.0' in call("GET", "/metrics").body.decode()
