"""``mp2 inspect`` as a user calls it; what it finds is tested in ``tests/evaluation/test_inspect.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mp2.cli.main import app
from mp2.errors import WriteError
from mp2.model.checkpoint import Base
from tests.serving.kit import REVIEWS, adapter


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(base, REVIEWS, 1).save(tmp_path / "reviews")
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr("mp2.evaluation.inspect.inspect_adapter", lambda *_: pytest.fail("measured"))
    arguments = [
        "inspect",
        str(tmp_path / "reviews"),
        "--model",
        str(base.path),
        "-o",
        str(tmp_path / "taken"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, WriteError) and "expected a folder" in str(result.exception)
