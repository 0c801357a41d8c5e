"""``mp2 export`` and ``mp2 hub`` as a user calls them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mp2.cli.main import app
from mp2.errors import CheckpointError
from mp2.model.checkpoint import Base
from mp2.tuning.adapter import load_adapter
from tests.local_hub import local_hub
from tests.serving.kit import REVIEWS, adapter


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"HF_TOKEN": "hf_test"})


def test_an_adapter_is_pushed_and_pulled(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    adapter(base, REVIEWS, 1).save(tmp_path / "reviews")
    with local_hub(tmp_path / "hub") as address:
        result = call("hub", "push", tmp_path / "reviews", "anna/reviews", "--endpoint", address)
        assert result.exit_code == 0 and "anna/reviews/commit/" in result.stdout
        pull = ("hub", "pull", "anna/reviews", "--endpoint", address, "--out", tmp_path / "back")
        result = call(*pull)
        assert result.exit_code == 0 and "task reviews (made-router) for base micro" in result.stdout
        again = call(*pull)
        assert isinstance(again.exception, CheckpointError) and "exists" in str(again.exception)
        damaged = shutil.copytree(
            tmp_path / "hub" / "anna" / "reviews", tmp_path / "hub" / "anna" / "damaged"
        )
        (damaged / "adapter.safetensors").write_bytes(b"damaged")
        broken = call("hub", "pull", "anna/damaged", "--endpoint", address, "--out", tmp_path / "broken")
        assert isinstance(broken.exception, CheckpointError) and not (tmp_path / "broken").exists()
    assert load_adapter(tmp_path / "back").task == REVIEWS
    assert not any(file.is_symlink() for file in (tmp_path / "back").iterdir())


def test_what_is_neither_adapter_nor_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (("push", tmp_path / "empty", "anna/none"), ("pull", tmp_path / "empty", "-o", "out")):
        result = call("hub", *command)
        assert isinstance(result.exception, CheckpointError) and "neither" in str(result.exception)
        (tmp_path / "empty" / "README.md").write_text("a folder of something else")


def test_a_peft_folder_is_written(base: Base, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter(base, REVIEWS, 1).save(tmp_path / "reviews")
    arguments = ("export", "peft", tmp_path / "reviews", "--out", tmp_path / "peft", "--model", base.path)
    result = call(*arguments)
    assert result.exit_code == 0 and (tmp_path / "peft" / "adapter_model.safetensors").exists()
