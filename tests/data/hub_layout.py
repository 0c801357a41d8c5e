"""Invented rows in the layout of the data sets that the task files fetch from the hub.

Names of files, columns and classes as the hub's data sets have them, so far as they are known (docs/data.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.data.invented import sentence

NLI = ["neutral", "entailment", "contradiction"]
TNEWS = [str(n) for n in range(100, 117) if n not in (105, 111)]
CLASSES = {
    "clue/clue/afqmc": ["0", "1"],
    "clue/clue/cmnli": NLI,
    "clue/clue/ocnli": NLI,
    "clue/clue/csl": ["0", "1"],
    "clue/clue/cluewsc2020": ["true", "false"],
    "clue/clue/tnews": TNEWS,
    "clue/clue/iflytek": [str(n) for n in range(119)],
    "google-research-datasets/paws-x/zh": ["0", "1"],
    "facebook/xnli/zh": ["entailment", "neutral", "contradiction"],
}
SPLITS = ("train", "validation", "test")


def write_hub(folder: Path, *, named: bool = True, rows: int = 60) -> None:
    """Every data set of the task files, below ``folder``; ``named``: the files say the names of classes."""
    for place, classes in CLASSES.items():
        for split in SPLITS:
            table = [_row(place, n, len(classes)) for n in _numbers(split, rows)]
            write_parquet(
                folder / place / f"{split}-00000-of-00001.parquet", table, classes if named else None
            )
    for split in SPLITS:
        numbers = _numbers(split, rows)
        for place in ("hfl/cmrc2018/data", "clue/clue/drcd"):
            write_parquet(folder / place / f"{split}-00000-of-00001.parquet", [_reading(n) for n in numbers])
        for place in ("C-MTEB/LCQMC/data", "C-MTEB/BQ/data"):
            scored = [{**_pair(n), "score": n % 2} for n in numbers]
            write_parquet(folder / place / f"{split}-00000-of-00001-ae04bea7d65ea894.parquet", scored)
        for part in ("mixed", "dialog"):
            path = folder / "dataset-org/c3" / part / split / "0000.parquet"
            write_parquet(path, [_choice(n) for n in numbers])
    posts = "".join(f'{n % 2},"{sentence(n)}"\n' for n in range(rows))
    (folder / "dirtycomputer/weibo_senti_100k").mkdir(parents=True)
    (folder / "dirtycomputer/weibo_senti_100k/weibo_senti_100k.csv").write_text("label,review\n" + posts)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], classes: Sequence[str] | None = None) -> None:
    """A Parquet file as the hub's library writes it, with the names of the classes of ``label`` if given."""
    table = pyarrow.Table.from_pylist(list(rows))
    if classes is not None:
        features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def _numbers(split: str, rows: int) -> range:
    start = SPLITS.index(split) * rows
    return range(start, start + rows)


def _pair(n: int) -> dict[str, Any]:
    return {"sentence1": sentence(n), "sentence2": sentence(n + 10_000)}


def _row(place: str, n: int, classes: int) -> dict[str, Any]:
    label = n % classes
    if place.endswith("cluewsc2020"):
        target = {"span1_text": "学生", "span2_text": "他", "span1_index": 0, "span2_index": 3}
        return {"idx": n, "text": sentence(n), "label": label, "target": target}
    if place.endswith("csl"):
        return {"idx": n, "corpus_id": n, "abst": sentence(n), "label": label, "keyword": ["手机", "电影"]}
    if place.endswith(("tnews", "iflytek")):
        return {"sentence": sentence(n), "label": label, "idx": n}
    if place.startswith("facebook/xnli"):
        return {"premise": sentence(n), "hypothesis": sentence(n + 10_000), "label": label}
    return {**_pair(n), "label": label, "idx": n}


def _reading(n: int) -> dict[str, Any]:
    context = sentence(n, 40)
    answers = {"text": [context[4:8]], "answer_start": [4]}
    return {"id": str(n), "context": context, "question": "说的是什么？", "answers": answers}


def _choice(n: int) -> dict[str, Any]:
    options = ["晴天", "雨天", "雪天"]
    questions = {
        "question": ["天气？", "后来？"],
        "answer": ["雨天", "晴天"],
        "choice": [options, options[:2]],
    }
    return {"documents": [sentence(n), "雨。"], "document_id": str(n), "questions": questions}
