"""``mp2 demo`` runs from beginning to end and its data are what it says."""

from __future__ import annotations

from collections import Counter

import pytest
from typer.testing import CliRunner

from mp2.cli.demo import TASKS
from mp2.cli.main import app
from mp2.errors import ConfigError
from mp2.model.checkpoint import ASSETS, Base
from mp2.tuning.rows import labelled_rows


def test_the_demo_runs_and_shows_every_task(base: Base) -> None:
    result = CliRunner().invoke(app, ["demo", "--model", str(base.path), "--method", "mp2-deep-gd-router"])
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in TASKS)
    assert "s in all" in result.output


def test_a_method_that_cannot_take_every_task_is_told_before_any_is_tuned(base: Base) -> None:
    result = CliRunner().invoke(app, ["demo", "--model", str(base.path), "--method", "linear-probing"])
    assert isinstance(result.exception, ConfigError) and "task find-target (extract" in str(result.exception)
    assert "support-tickets" not in result.output


@pytest.mark.parametrize("name", TASKS)
def test_the_demo_data_are_balanced_and_disjoint(name: str) -> None:
    task, train = labelled_rows(ASSETS / "demo" / name / "train.csv", None)
    parts = {"train": train}
    for part in ("dev", "test"):
        parts[part] = labelled_rows(ASSETS / "demo" / name / f"{part}.csv", task)[1]
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 32, "dev": 32, "test": 100}
    texts = [row.segments for rows in parts.values() for row in rows]
    assert len(set(texts)) == len(texts)
    if task.labels:
        for rows in parts.values():
            counts = Counter(row.answer for row in rows)
            assert len(set(counts.values())) == 1 and len(counts) == len(task.labels)
