"""Folders are floors: imports only go down, and the lowest know no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mp2

FLOORS = ("tasks", "data", "model", "training", "tuning", "export", "evaluation", "serving", "cli")
ROOT = Path(mp2.__file__).parent


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_a_floor_imports_only_from_floors_below() -> None:
    wrong = []
    for number, floor in enumerate(FLOORS):
        above = set(FLOORS[number + 1 :])
        for path in sorted((ROOT / floor).rglob("*.py")):
            for name in _imports(path):
                part = name.split(".")[1] if name.startswith("mp2.") else ""
                if part in above:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_floor() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*FLOORS, "assets"}


def test_tasks_know_no_torch() -> None:
    for path in (ROOT / "tasks").rglob("*.py"):
        assert not any(name.split(".")[0] in ("torch", "transformers") for name in _imports(path)), path
