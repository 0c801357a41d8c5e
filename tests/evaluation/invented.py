"""Invented data sets in the folders and formats of catalogue tasks, and invented records."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mp2.evaluation.records import Record, pack_scores

GOOD = ["服务很好", "味道不错", "我非常喜欢", "东西好用", "很快很好"]
BAD = ["服务太差", "味道不好", "我很不喜欢", "东西难用", "又慢又差"]
PLACES = ["北京", "上海", "海岸", "山下", "学校", "公园", "车站", "门口"]
THINGS = ["咖啡", "手机", "苹果", "电影", "音乐"]


def write_data(root: Path, rows: int = 60, tests: int = 24, seed: int = 0) -> Path:
    """A sentiment set in ChnSent's files and an extraction set in COTE-BD's."""
    rng = random.Random(seed)
    for folder, names in (("ChnSent", ("train.tsv", "dev.tsv")), ("COTE-BD", ("train.txt", "test.txt"))):
        (root / folder).mkdir(parents=True)
        for name, count in zip(names, (rows, tests), strict=True):
            lines = []
            for number in range(count):
                place, thing = rng.choice(PLACES), rng.choice(THINGS)
                text = f"{place}{number}号的{thing}，{rng.choice((BAD, GOOD)[number % 2])}"
                row = {"s": text, "ot": thing}
                sentiment = f"{text}\t{number % 2}"
                lines.append(sentiment if name.endswith("tsv") else json.dumps(row, ensure_ascii=False))
            (root / folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def record(
    method: str = "mp2-deep-gd",
    task: str = "lcqmc",
    seed: int = 8,
    *,
    right: float = 0.7,
    rows: int = 200,
    metric: str = "accuracy",
    **changes: object,
) -> Record:
    """A record of a run that never was."""
    rng = random.Random(f"{method} {task} {seed}")
    if metric == "accuracy":
        scores = [float(rng.random() < right) for _ in range(rows)]
    else:
        scores = [round(min(1.0, max(0.0, rng.gauss(right, 0.3))), 3) for _ in range(rows)]
    facts: dict[str, object] = {
        "method": method,
        "method_version": 1,
        "task": task,
        "task_version": 1,
        "seed": seed,
        "shots": None,
        "variant": "",
        "base": "micro",
        "base_fingerprint": "b" * 16,
        "bank": "deep",
        "bank_fingerprint": "c" * 16,
        "test_limit": 0,
        "settings": "steps=3",
        "status": "done",
        "metric": metric,
        "test": sum(scores) / rows,
        "dev": right,
        "train_rows": 32,
        "test_rows": rows,
        "draw": f"draw-{seed}",
        "test_key": f"test-{task}",
        "scores": pack_scores(scores),
        "seconds": 3.0,
        "tuned_parameters": 96,
        "versions": {"mp2": "0.1.0", "git": "abc"},
        "machine": {"device": "cpu"},
    }
    return Record(**{**facts, **changes})  # type: ignore[arg-type]
