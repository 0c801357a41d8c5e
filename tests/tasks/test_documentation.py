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


@pytest.mark.parametrize(
    "model", [TaskSpec, Verbaliser, PaperFacts, DataSource, FileSource, HubSource, SplitSource, Layout]
)
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    for key in model.model_fields:
        assert f"`{key}`" in TEXT, key
