"""The wheel holds the shipped model and works where only it is installed, outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mp2.model.checkpoint import DEFAULT_BASE

ROOT = Path(__file__).parent.parent
USE = """
import json, mp2
from dataclasses import replace
from pathlib import Path
from mp2.model.checkpoint import load_base
from mp2.serving.predictor import Predictor
from mp2.tuning.methods import get_method
from mp2.tuning.rows import labelled_rows
from mp2.tuning.stages import Gradient
from mp2.tuning.tune import tune

base = load_base()
folder = Path(mp2.__file__).parent / "assets/demo/support-tickets"
task, rows = labelled_rows(folder / "train.csv", None)
method = replace(get_method("mp2-deep-gd-router"), stages=(Gradient({"router": 0.3}, steps=1),))
adapter = tune(base, task, rows[:4], rows[4:8], method)
predictor = Predictor(base)
predictor.add("t", adapter)
answer = predictor.predict([("t", "包裹到哪里了")])[0].answer.text
print(json.dumps({"at": mp2.__file__, "name": base.name, "answer": answer, "labels": task.labels}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_it_holds_the_model_the_tasks_and_the_page_and_nothing_of_the_repository(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    model = f"mp2/assets/{DEFAULT_BASE}/"
    for part in (f"{model}mp2.json", "mp2/assets/demo/gym-reviews/train.csv", "mp2/tasks/specs/bq.yaml"):
        assert part in names
    sizes = [entry.file_size for entry in zipfile.ZipFile(wheel).infolist() if model in entry.filename]
    assert sum(sizes) < 40_000_000
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mp2"}


def test_it_works_where_only_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["at"]).is_relative_to(site)
    assert found["name"] == DEFAULT_BASE and found["answer"] in found["labels"]
