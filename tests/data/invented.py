"""Small invented data sets: task files with a data section, and the raw files they describe."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mp2.tasks.spec import TaskSpec, parse_task

WORDS = re.findall("..", "咖啡手机公司服务学生老师电影音乐故事天气北京上海问题答案味道时间朋友孩子文章城市")

LAYOUT = """
data:
  folder: {name}
  source: invented
  licence: none
  suites: [{suite}]
  files:
    train: {{path: train.{suffix}, format: {suffix}}}
    more: {{path: more.{suffix}, format: {suffix}}}
    test: {{path: test.{suffix}, format: {suffix}}}
  layouts:
    - splits: {{{splits}}}
    - splits: {{{fewer}}}
"""
UPSTREAM = "train: {files: [train, more], fraction: [0, 0.9]}, dev: {files: train, fraction: [0.9, 1]}"
DOWNSTREAM = "pool: {files: [train, more]}, test: {files: test}"

BODIES = {
    "classification": "family: classification\nlabels: [负面, 正面]\ncoding: {'0': 负面, '1': 正面}\n",
    "pair": "family: pair\nlabels: [矛盾, 相似]\n",
    "choice": "family: choice\n",
    "extraction": "family: extraction\n",
    "reading": "family: reading\nno_answer: true\nanswer_start: start\n",
}


def task(
    name: str,
    family: str = "classification",
    *,
    downstream: bool = False,
    suffix: str = "csv",
    group_by: str = "",
) -> TaskSpec:
    """A task whose rows lie in ``<name>/train``, ``more`` (if there) and ``test``."""
    splits = DOWNSTREAM if downstream else UPSTREAM + ", test: {files: test}"
    data = LAYOUT.format(
        name=name,
        suite="unseen-x" if downstream else "pretrain-x",
        suffix=suffix,
        splits=splits,
        fewer=splits.replace("[train, more]", "train"),
    )
    group = f"  group_by: {group_by}\n" if group_by else ""
    return parse_task(f"name: {name}\n{BODIES[family]}{data}{group}")


def sentence(number: int, words: int = 8) -> str:
    """A sentence that no other number has."""
    chosen = random.Random(number).choices(WORDS, k=words)
    return "".join(chosen) + f"，第{number}句。"


def texts(first: int, count: int, *, words: int = 8) -> list[dict[str, Any]]:
    """Labelled rows of a classification task."""
    return [{"text": sentence(n, words), "label": n % 2} for n in range(first, first + count)]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write one object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def rows_of(family: str, count: int) -> list[dict[str, Any]]:
    """Labelled rows of any family."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        context = sentence(n, 40)
        if family == "classification":
            rows.append({"text": context, "label": n % 2})
        elif family == "pair":
            rows.append({"text1": context, "text2": sentence(n + 10_000), "label": n % 2})
        elif family == "choice":
            options = [WORDS[(n + k) % len(WORDS)] for k in range(2 + n % 3)]
            rows.append({"document": context, "question": "说的是什么？", "options": options, "label": n % 2})
        elif family == "extraction":
            rows.append({"context": context, "answer": context[4:8]})
        else:
            answer = (
                {"answer": [], "start": []} if n % 4 == 0 else {"answer": [context[4:8], "句"], "start": [4]}
            )
            rows.append({"context": context, "question": "第几句？", **answer})
    return rows
