"""The client in the documentation is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mp2.model.checkpoint import Base
from mp2.serving import schemas
from mp2.serving.service import Settings
from tests.serving.kit import folder
from tests.serving.live import in_thread

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_client_speaks_to_a_server(base: Base, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    with in_thread(Settings(folder(base, tmp_path), str(base.path)), base) as (call, _):
        ask = names["Mp2"](f"http://127.0.0.1:{call.port}")
        # the rows of the second block, whose server would be another one, can be learned from
        exec(blocks[1].partition("job = ask")[0].replace("Mp2()", "None"), names)
        checked = ask("POST", "/v1/check", {"name": "reviews", "examples": names["rows"]})
        assert checked["usable"], checked
        assert ask("GET", "/v1/tasks")["total"] == 3
        found = ask("POST", "/v1/tasks/reviews/predict", {"inputs": ["味道很好"]})["predictions"]
        assert found[0]["label"] in found[0]["scores"]
        assert ask("DELETE", "/v1/tasks/pairs") is None
        with pytest.raises(RuntimeError, match="no task 'pairs'"):
            ask("GET", "/v1/tasks/pairs")


def test_the_documented_routes_and_limits_are_the_real_ones(base: Base, tmp_path: Path) -> None:
    with in_thread(Settings(tmp_path, str(base.path)), base) as (call, _):
        paths = call("GET", "/openapi.json").json["paths"]
    for path, operations in paths.items():
        for method in operations:
            first = rf"`{method.upper()} (?:[^`]+`, `)*"  # of several paths the first one alone bears it
            assert re.search(first + re.escape(path) + "`", PAGE), (method, path)
    for limit in (schemas.TEXT_CHARACTERS, schemas.EXAMPLES, schemas.TASK_FILE_CHARACTERS):
        assert f"{limit:,}" in PAGE
