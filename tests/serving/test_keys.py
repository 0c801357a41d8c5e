from __future__ import annotations

import json
from pathlib import Path

import pytest

from mp2.errors import ConfigError
from mp2.model.checkpoint import Base
from mp2.serving.keys import Keys, add_key, read_keys
from mp2.serving.server import serve
from mp2.serving.service import Settings
from tests.serving.kit import folder
from tests.serving.live import Client, in_thread


def test_a_key_is_known_by_its_secret_which_is_nowhere_stored(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    token, other = add_key(file, "anna"), add_key(file, "bert", per_minute=5, tune=False)
    keys = Keys(file)
    found = keys.check(token)
    assert found is not None and found.name == "anna" and found.tune
    bert = keys.check(other)
    assert bert is not None and (bert.per_minute, bert.tune) == (5, False)
    assert token.split("-", 2)[2] not in file.read_text(encoding="utf-8")
    assert file.stat().st_mode & 0o077 == 0
    for wrong in (
        "",
        "mp2",
        token[:-1],
        token + "x",
        token.replace("anna", "bert"),
        "x" + token,
        "mp2-é-\udc00",
    ):
        assert keys.check(wrong) is None


def test_a_key_can_be_revoked_and_renewed_while_the_server_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    old = add_key(file, "anna")
    keys = Keys(file)
    new = add_key(file, "anna")
    assert keys.check(old) is None and keys.check(new) is not None
    file.write_text("[]", encoding="utf-8")
    assert keys.check(new) is None


def test_requests_are_counted_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mp2.serving.keys.time.monotonic", lambda: now)
    file = tmp_path / "keys.json"
    token, other = add_key(file, "anna", per_minute=3), add_key(file, "bert", per_minute=3)
    keys = Keys(file)
    anna, bert = keys.check(token), keys.check(other)
    assert anna is not None and bert is not None
    assert [keys.wait(anna) for _ in range(4)] == [0, 0, 0, pytest.approx(20)]
    assert keys.wait(bert) == 0
    now += 20
    assert keys.wait(anna) == 0 and keys.wait(anna) == pytest.approx(20)


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[1]", '[{"name": "a"}]', '[{"name": "A b", "salt": "00", "hash": "00"}]',
     '[{"name": "a", "salt": "xy", "hash": "00"}]', '[{"name": "a", "salt": "00", "hash": "00", "tune": 1}]',
     '[{"name": "a", "salt": "00", "hash": "00", "per_minute": 0}]'],
)  # fmt: skip
def test_a_file_that_is_no_key_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content, encoding="utf-8")
    if content == "{}":
        assert read_keys(file) == {}
        return
    with pytest.raises(ConfigError, match=r"key"):
        Keys(file)


def test_other_machines_are_not_let_in_without_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--keys"):
        serve(Settings(tmp_path), "0.0.0.0")


def test_keys_over_http(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    anna, bert = add_key(file, "anna", per_minute=1000), add_key(file, "bert", per_minute=2, tune=False)
    with in_thread(Settings(folder(base, tmp_path / "tasks"), str(base.path), keys=file), base) as (call, _):
        body = {"inputs": "好"}
        for method, path in (
            ("GET", "/v1/tasks"),
            ("GET", "/metrics"),
            ("POST", "/v1/tasks/reviews/predict"),
        ):
            reply = call(method, path, body if method == "POST" else None)
            assert (reply.status, reply.json["error"]["type"]) == (401, "unauthorised")
            assert reply.headers["www-authenticate"] == "Bearer"
        assert call("GET", "/v1").json["needs_key"] and call("GET", "/healthz").status == 200
        asking = Client(call.port, {"authorization": f"Bearer {bert}"})
        assert asking("POST", "/v1/tasks/reviews/predict", body).status == 200
        assert asking("DELETE", "/v1/tasks/reviews").status == 403
        reply = asking("POST", "/v1/tasks/reviews/predict", body)
        assert (reply.status, reply.json["error"]["type"]) == (429, "rate")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        tuning = Client(call.port, {"authorization": f"Bearer {anna}"})
        assert tuning("DELETE", "/v1/tasks/pairs").status == 204
        file.write_text(json.dumps([]), encoding="utf-8")
        assert tuning("GET", "/v1/tasks").status == 401
        file.unlink()
        assert tuning("GET", "/v1/tasks").status == 503
