"""The method of a task where nobody names one: it depends on whether the model was taught the labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mp2.model.checkpoint import Base, load_bank, write_manifest
from mp2.tasks.spec import TaskSpec
from mp2.tuning.default import default_method
from mp2.tuning.methods import DEFAULT_METHOD, NEW_LABELS_METHOD


def taught(base: Base, folder: Path, *tasks: str) -> Base:
    """A copy of a base whose deep bank says that it was trained on some tasks."""
    shutil.copytree(base.path, folder)
    bank = replace(load_bank(folder / "banks" / "deep"), tasks=tasks)
    bank.save(folder / "banks" / "deep")
    write_manifest(folder, "micro", ["deep"])
    return Base(folder)


@pytest.mark.parametrize(
    ("tasks", "labels", "expected"),
    [
        (("chnsent", "tnews"), ("物流", "退款"), NEW_LABELS_METHOD),
        (("chnsent", "tnews"), ("正面", "负面"), DEFAULT_METHOD),
        (("chnsent", "tnews"), ("体育", "退款"), DEFAULT_METHOD),  # one of them is known
        (("chnsent", "my-own"), ("物流", "退款"), DEFAULT_METHOD),  # what my-own taught, nobody knows
    ],
)
def test_labels_decide(
    base: Base, tmp_path: Path, tasks: tuple[str, ...], labels: tuple[str, ...], expected: str
) -> None:
    task = TaskSpec(name="t", family="classification", labels=labels)
    assert default_method(taught(base, tmp_path / "base", *tasks), task).name == expected


def test_a_task_without_labels_or_a_base_without_a_bank_has_the_row_of_all_others(
    base: Base, tmp_path: Path
) -> None:
    other = taught(base, tmp_path / "base", "chnsent")
    assert default_method(other, TaskSpec(name="t", family="extraction")).name == DEFAULT_METHOD
    shutil.rmtree(tmp_path / "base" / "banks")
    write_manifest(tmp_path / "base", "micro", [])
    task = TaskSpec(name="t", family="classification", labels=("物流", "退款"))
    assert default_method(Base(tmp_path / "base"), task).name == DEFAULT_METHOD
