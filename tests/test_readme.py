"""The README's Python runs as it stands; the shipped model's card is the one that would be written again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mp2.model.checkpoint import ASSETS, DEFAULT_BASE

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    rows = (ASSETS / "demo" / "gym-reviews" / "train.csv").read_text(encoding="utf-8").splitlines()[:17]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out.strip() in ("正面", "负面")


def test_the_card_of_the_shipped_model_begins_with_its_notes() -> None:
    card = (ASSETS / DEFAULT_BASE / "README.md").read_text(encoding="utf-8")
    notes = (ROOT / "docs" / "models" / f"{DEFAULT_BASE}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {DEFAULT_BASE}\n\n{notes.strip()}\n\n## Runs")
