"""``mp2 tasks`` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mp2.cli.main import app
from mp2.errors import TaskError
from mp2.tasks import catalogue
from mp2.tasks.spec import parse_task


def call(*arguments: str, root: str = "") -> Result:
    return CliRunner().invoke(app, ["tasks", *arguments], env={"MP2_DATA": root})


def test_list_has_the_papers_46_rows() -> None:
    result = call("list")
    assert result.exit_code == 0
    rows = result.stdout.split("\n\n")[0].splitlines()[1:]
    assert len(rows) == 46
    assert rows[0].split() == ["afqmc", "pair", "2", "pretrain-38"]


def test_list_says_what_is_here_and_what_to_put_where(tmp_path: Path) -> None:
    (tmp_path / "Waimai").mkdir()
    (tmp_path / "Waimai/waimai_10k.csv").write_text("label,review\n1,好\n", encoding="utf-8")
    result = call("list", "--suite", "pretrain-38", "--root", str(tmp_path))
    assert f"pretrain-38: 1 of 38 here, under {tmp_path}; 9 can be fetched, 28 by hand\n" in result.stdout
    put = f"put train.txt or train.json, dev.txt or dev.json into {tmp_path / 'AFQMC'}"
    assert f"afqmc: fetch it with 'mp2 data fetch afqmc', or {put}; from" in result.stdout
    ways = {line.split()[0]: line for line in result.stdout.splitlines()[:39]}
    assert ways["waimai"].endswith(" yes") and ways["ccpm"].endswith(" by hand")
    assert ways["afqmc"].endswith(" can be fetched")
    found = json.loads(call("list", "--suite", "pretrain-38", "--json", root=str(tmp_path)).stdout)
    assert [row["name"] for row in found["tasks"] if row["missing"] is None] == ["waimai"]
    assert found["tasks"][0]["fetch"] == ["train.parquet", "dev.parquet"]
    (tmp_path / "CMNLI").mkdir()
    (tmp_path / "CMNLI/dev.txt").write_text("一\t二\tneutral\n", encoding="utf-8")
    more = call("list", "--suite", "pretrain-38", root=str(tmp_path)).stdout
    assert "dev is split by premise; the rest can be fetched" in more


def test_show_prints_a_task_file() -> None:
    result = call("show", "kuake-qqr")
    assert parse_task(result.stdout) == catalogue.get("kuake-qqr")
    assert json.loads(call("show", "kuake-qqr", "--json").stdout)["labels"] == ["无关", "包含", "相同"]
    with pytest.raises(TaskError, match="did you mean 'kuake-qqr'"):
        CliRunner().invoke(app, ["tasks", "show", "kuake-qq"], catch_exceptions=False)


def test_validate_tells_every_mistake_of_every_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: a\nfamily: classification\nlabels: [晴, 雨]\n", encoding="utf-8")
    bad.write_text("name: a\nfamly: pair\nlables: [晴, 雨]\n", encoding="utf-8")
    result = call("validate", str(bad), str(good))
    assert result.exit_code == 2
    assert result.stdout == f"{good}: task a, classification, 2 labels\n"
    assert f"{bad}:2: unknown key 'famly'; did you mean 'family'?" in result.stderr
    assert f"{bad}:3: unknown key 'lables'; did you mean 'labels'?" in result.stderr


def test_validate_tries_the_rows(tmp_path: Path) -> None:
    task, rows = tmp_path / "task.yaml", tmp_path / "rows.csv"
    task.write_text("name: a\nfamily: classification\nlabels: [晴, 雨]\n", encoding="utf-8")
    rows.write_text("text,label\n好天,晴\n伞,雨\n", encoding="utf-8")
    assert f"2 rows of {rows} fit" in call("validate", str(task), "--rows", str(rows)).stdout
    rows.write_text("text,label\n好天,晴\n伞,下雨\n", encoding="utf-8")
    result = call("validate", str(task), "--rows", str(rows))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{rows}:3: unknown label '下雨'" in result.stderr


@pytest.mark.parametrize("full", [False, True])
def test_standard_output_is_utf_8_and_may_be_full(full: bool) -> None:
    device = Path("/dev/full")
    if full and not device.is_char_device():
        pytest.skip("needs a device that is full")
    with device.open("wb") if full else nullcontext(subprocess.PIPE) as out:
        done = subprocess.run(
            [sys.executable, "-m", "mp2.cli.main", "tasks", "show", "chnsent"],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""},
            check=False,
        )
    if full:
        assert done.returncode == 2 and b"error: cannot be written: " in done.stderr
        assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr
    else:
        assert done.returncode == 0 and "情感" in done.stdout.decode("utf-8")
