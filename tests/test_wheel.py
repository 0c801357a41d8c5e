"""The wheel holds the shipped model and works where only it is installed, outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mp2.model.checkpoint import DEFAULT_BASE

ROOT = Path(__file__).parent.parent


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
    listed = json.loads(zipfile.ZipFile(wheel).read(f"{model}mp2.json"))["files"]
    others = ("assets/demo/gym-reviews/train.csv", "tasks/specs/bq.yaml", "serving/page/index.html")
    assert {*(f"{model}{name}" for name in listed), *(f"mp2/{name}" for name in others)} <= set(names)
    sizes = [entry.file_size for entry in zipfile.ZipFile(wheel).infolist() if model in entry.filename]
    assert sum(sizes) < 40_000_000
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mp2"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel, and what it needs by way of the running one."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment)
    programs = environment / "bin"
    install = [sys.executable, "-m", "pip", "--python", programs / "python", "install", wheel]
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*install, *options], check=True, capture_output=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([programs / "python", "-c", ask], check=True, capture_output=True, text=True)
    # names one folder to look in last; the link to the repository in there is not followed from here
    (Path(found.stdout.strip()) / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def _run(cwd: Path, *command: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_its_command_learns_and_answers_where_only_it_is_installed(installed: Path, tmp_path: Path) -> None:
    found = _run(tmp_path, installed / "python", "-c", "import mp2; print(mp2.__file__)")
    package = Path(found.strip()).parent
    assert package.is_relative_to(installed.parent)
    rows = (package / "assets" / "demo" / "support-tickets" / "train.csv").read_text(encoding="utf-8")
    (tmp_path / "rows.csv").write_text("".join(rows.splitlines(keepends=True)[:5]), encoding="utf-8")
    command, method = installed / "mp2", ("--method", "mp2-deep-gd-router")
    _run(tmp_path, command, "tune", "rows.csv", "--dev", "rows.csv", "--out", "tickets", *method)
    answer = json.loads(_run(tmp_path, command, "predict", "tickets", "包裹到哪里了"))
    assert answer["label"] in rows and answer["label"] in answer["scores"]
    facts = json.loads((tmp_path / "tickets" / "adapter.json").read_text(encoding="utf-8"))
    assert (facts["base"], facts["method"]) == (DEFAULT_BASE, method[1])
