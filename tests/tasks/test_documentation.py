"""docs/tasks.md: its examples are read by the real parser, and it explains every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from mp2.tasks.source import DataSource, FileSource, HubSource, Layout, PaperFacts, SplitSource
from mp2.tasks.spec import TaskSpec, Verbaliser, parse_task

TEXT = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_are_task_files() -> None:
    whole, data = EXAMPLES
    assert parse_task(whole).labels == ("物流", "退款", "账号", "故障")
    assert parse_task("name: a\nfamily: pair\nlabels: [甲, 乙]\n" + data).data is not None


def _explained(begin: str) -> set[str]:
    """Words in code style: in first cells of the table with that header, or in a row or paragraph."""
    lines = re.search(rf"^{re.escape(begin)}.*?(?=\n\n|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert lines is not None, begin
    part = lines[0]
    if begin.startswith("| key"):
        part = "".join(row.split("|")[1] for row in part.splitlines()[2:])
    elif begin.startswith("|"):
        part = part.splitlines()[0]
    return set(re.findall(r"`([^`]+)`", part))


@pytest.mark.parametrize(
    ("model", "begin"),
    [
        (TaskSpec, "| key | meaning"),
        (Verbaliser, "| `verbalisers`"),
        (PaperFacts, "`paper` holds"),
        (DataSource, "| key of `data`"),
        (HubSource, "| key of `hub`"),
        (FileSource, "| key of a file"),
        (SplitSource, "| key of a split"),
        (Layout, "| `layouts`"),
    ],
)
def test_every_key_is_explained_where_it_belongs(model: type[BaseModel], begin: str) -> None:
    assert set(model.model_fields) <= _explained(begin)
