"""Splits from files: layouts, fractions by document, exclusions; the real sets have the carriers' counts."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from mp2.data.readers import read_rows, read_table
from mp2.data.sources import files, group_key, layout, missing, position, read_split
from mp2.errors import DataError
from mp2.tasks import catalogue
from mp2.tasks.render import render
from mp2.tasks.source import FileSource
from mp2.tasks.spec import TaskSpec

SPLITS: dict[str, Any] = {
    "train": {"files": "all", "fraction": (0, 0.6)},
    "dev": {"files": "all", "fraction": (0.6, 0.8)},
    "test": {"files": "all", "fraction": (0.8, 1)},
}


def weather(**data: Any) -> TaskSpec:
    source: dict[str, Any] = {
        "folder": ("weather", "old-weather"),
        "source": "a station",
        "licence": "none",
        "files": {"all": {"path": ("all.tsv", "rows.tsv"), "format": "tsv", "columns": ("text", "label")}},
        "layouts": ({"splits": SPLITS},),
    }
    return TaskSpec.model_validate(
        {"name": "weather", "family": "classification", "labels": ("晴", "雨"), "data": source | data}
    )


def write(root: Path, name: str, texts: list[str]) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{text}\t晴\n" for text in texts), encoding="utf-8")


def texts(task: TaskSpec, split: str, root: Path, **keys: Any) -> list[str]:
    return [row["text"] for _, row in read_split(task, split, root, **keys)]


def test_fractions_are_disjoint_and_complete(tmp_path: Path) -> None:
    everything = [f"第{n}天" for n in range(500)]
    write(tmp_path, "weather/all.tsv", everything)
    parts = {split: texts(weather(), split, tmp_path) for split in SPLITS}
    assert sorted(chain.from_iterable(parts.values())) == sorted(everything)
    assert 250 < len(parts["train"]) < 350
    # the same parts on every machine: a hash, not an order or a seed
    assert parts["dev"][:3] == ["第3天", "第6天", "第7天"]


def test_rows_of_one_document_stay_together(tmp_path: Path) -> None:
    write(tmp_path, "weather/all.tsv", [f"文{n % 20}\u3000句{n}" for n in range(200)])
    spec = {"path": "all.tsv", "format": "tsv", "delimiter": "\u3000", "columns": ("doc", "text")}
    task = weather(files={"all": spec}, group_by="doc")
    owners: dict[str, set[str]] = {}
    for split in SPLITS:
        for _, row in read_split(task, split, tmp_path):
            owners.setdefault(row["doc"], set()).add(split)
    assert len(owners) == 20
    assert all(len(owner) == 1 for owner in owners.values())


def test_white_space_does_not_move_a_row() -> None:
    assert position("今天 下雨") == position("今天下雨\n")
    assert 0 <= position("") < 1 and 0 <= position("\ud83d") < 1
    assert group_key(weather(), {"text": "晴", "label": "0"}) == "晴"


def test_a_row_without_the_columns_that_place_it_is_bad_in_every_part(tmp_path: Path) -> None:
    (tmp_path / "weather").mkdir()
    (tmp_path / "weather/all.csv").write_text("txt,label\n热,晴\n冷,雨\n", encoding="utf-8")
    task = weather(files={"all": {"path": "all.csv", "format": "csv"}})
    for split in SPLITS:
        with pytest.raises(DataError, match=r"all.csv:2: column 'text' is missing; did you mean 'txt'"):
            texts(task, split, tmp_path)
        errors: list[DataError] = []
        assert not texts(task, split, tmp_path, on_bad=errors.append)
        assert len(errors) == 2


def test_excluded_and_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "weather/all.tsv", ["晴", "雨", "雨", "雪"])
    write(tmp_path, "weather/test.tsv", ["晴 "])
    file = {"format": "tsv", "columns": ("text", "label")}
    task = weather(
        files={"all": {"path": "all.tsv", **file}, "test": {"path": "test.tsv", **file}},
        layouts=({"splits": {"train": {"files": "all", "exclude": "test", "distinct": True}}},),
    )
    left_out: list[tuple[str, int | None]] = []
    keys = {"on_left_out": lambda reason, where: left_out.append((reason, where.line))}
    assert texts(task, "train", tmp_path, **keys) == ["雨", "雪"]
    assert left_out == [("in test", 1), ("repeated", 3)]
    with (tmp_path / "weather/test.tsv").open("a", encoding="utf-8") as out:
        out.write("a row that cannot be read\n")  # it costs its own split a row, not this one
    bad: list[DataError] = []
    assert texts(task, "train", tmp_path, on_bad=bad.append) == ["雨", "雪"] and not bad
    with pytest.raises(DataError, match=r"test.tsv:2: expected 2 columns"):
        texts(task, "train", tmp_path)


@pytest.mark.parametrize("rule", [{"exclude": "old"}, {"distinct": True}])
def test_rows_without_their_texts_are_bad_and_not_all_the_same(tmp_path: Path, rule: dict[str, Any]) -> None:
    names = {"all": "all.tsv", "old": "old.tsv"}
    kinds = {
        name: {"path": path, "format": "tsv", "columns": ("txt", "label")} for name, path in names.items()
    }
    task = weather(files=kinds, layouts=({"splits": {"train": {"files": "all", **rule}}},))
    write(tmp_path, "weather/all.tsv", ["一", "二", "三"])
    write(tmp_path, "weather/old.tsv", ["四"])
    bad, left = list[DataError](), list[str]()
    told = {"on_bad": bad.append, "on_left_out": lambda reason, where: left.append(reason)}
    assert not texts(task, "train", tmp_path, **told) and not left
    assert [str(error).partition("; ")[0] for error in bad] == [
        f"{tmp_path}/weather/all.tsv:{n}: column 'text' is missing" for n in (1, 2, 3)
    ]
    with pytest.raises(DataError, match="column 'text' is missing; did you mean 'txt'"):
        texts(task, "train", tmp_path)


def test_the_first_complete_layout_is_used(tmp_path: Path) -> None:
    columns = {"format": "tsv", "columns": ("text", "label")}
    task = weather(
        files={"train": {"path": "train.tsv", **columns}, "dev": {"path": "dev.tsv", **columns}},
        layouts=(
            {"splits": {"train": {"files": "train"}, "test": {"files": "dev"}}},
            {"note": "dev only", "splits": {"train": {"files": "dev", "fraction": (0, 0.5)}}},
        ),
    )
    assert missing(task, tmp_path) == (
        f"weather: put train.tsv, dev.tsv into {tmp_path / 'weather'}; from a station"
    )
    assert missing(task, tmp_path) is not None
    with pytest.raises(DataError, match=r"put train.tsv, dev.tsv into"):
        list(read_split(task, "train", tmp_path))
    write(tmp_path, "weather/dev.tsv", ["晴"])
    assert layout(task, tmp_path).note == "dev only"
    with pytest.raises(DataError, match="task weather: no split 'test'; valid: train"):
        list(read_split(task, "test", tmp_path))
    write(tmp_path, "weather/train.tsv", ["雨"])
    assert missing(task, tmp_path) is None
    assert texts(task, "train", tmp_path) == ["雨"]
    assert [path.name for path in files(task, tmp_path)] == ["train.tsv", "dev.tsv"]


def test_folders_names_and_compression_have_alternatives(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "old-weather").mkdir()
    (tmp_path / "old-weather/rows.tsv.gz").write_bytes(gzip.compress("晴天\t晴\n".encode()))
    assert missing(weather(), tmp_path) is None
    assert sum(len(texts(weather(), split, tmp_path)) for split in SPLITS) == 1


def test_a_task_without_data_says_so(tmp_path: Path) -> None:
    task = TaskSpec.model_validate({"name": "own", "family": "reading"})
    assert missing(task, tmp_path) == "own: the task file says nothing of data files"
    with pytest.raises(DataError, match="says nothing of data files"):
        read_split(task, "train", tmp_path)


# Rows per file as the carriers (or a count of their files) state them.
ROWS = {
    "afqmc": {"train": 34_334, "dev": 4_316},
    "lcqmc": {"dev": 8_802, "test": 12_500},
    "bq": {"dev": 10_000, "test": 10_000},
    "paws": {"dev": 2_000, "test": 2_000},
    "cmnli": {"dev": 12_241},
    "xnli": {"dev": 2_490, "test": 5_010},
    "ocnli": {"train_10k": 10_000, "train_3k": 3_000, "dev": 3_000},
    "csl": {"few_train": 160, "few_dev": 160, "few_test": 2_838},
    "csl-category": {"train": 8_000, "dev": 1_000, "test": 1_000},
    "chip-sts": {"train": 16_000, "dev": 4_000},
    "kuake-qqr": {"train": 15_000, "dev": 1_600},
    "chip-ctc": {"train": 22_962, "dev": 7_682},
    "kuake-qic": {"train": 6_931, "dev": 1_955},
    "baoxian-zhidao": {"all": 8_362},
    "thucnews": {"dev": 10_000, "test": 10_000, "dev_40k": 40_000, "test_40k": 40_000},
    "nlpcc-tc": {"negative": 5_000, "positive": 5_000, "test": 2_500},
    "tnews": {"train": 53_360, "dev": 10_000},
    "chnsent": {"train": 9_600, "dev": 1_200},
    "chnsenticorp-htl": {"all": 7_766},
    "waimai": {"all": 11_987},
    "online-shopping": {"all": 62_774},
    "weibo-sentiment": {"part": 2_400},
    "weibo2018": {"train": 10_000, "test": 500},
    "dmsc": {"dev": 10_000, "test": 10_000},
    "dianping": {"hotel_train": 12_000, "hotel_dev": 4_000, "hotel_test": 4_000},
    "toutiao-tc": {"train": 3_000, "dev": 1_000, "test": 1_064},
    "iflytek": {"dev": 2_599, "few_train": 3_024, "few_test": 1_749, "data_test": 2_000},
    "fudan-tc": {"answer_part": 7_568},
    "cmrc-2018": {"dev": 3_219, "trial": 1_002},
    "drcd": {"dev": 3_524, "train_part": 1_960},
    "dureader-robust": {"dev": 1_417, "demo_train": 100},
    "dureader-checklist": {"train": 3_000, "dev": 1_130},
    "c3": {"train": 6_013, "dev": 1_991},
    "c3-dialogue": {"train": 5_856, "dev": 1_825, "test": 1_890},
    "ccpm": {"train": 21_778, "valid": 2_720},
    "finre": {"train": 13_486, "valid": 1_489, "test": 3_727},
    "sanwen": {"train": 17_227, "valid": 1_793, "test": 2_220},
    "cluewsc": {"train": 1_244, "dev": 304},
    "cote-bd": {"train": 8_533, "test": 3_658},
    "cote-dp": {"test": 10_825},
    "cote-mfw": {"test": 17_681},
}


DROPPED = {
    "ocnli": {"label is '-'": 15 + 6 + 50},
    "baoxian-zhidao": {"reply is empty": 5},
    "chnsenticorp-htl": {"review is empty": 1},
    "online-shopping": {"review is empty": 1},
    "dmsc": {"comment is empty": 4 + 8},
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", ROWS)
def test_real_files_have_the_carriers_rows_and_render(name: str, real_data: Path) -> None:
    task = catalogue.get(name)
    if missing(task, real_data) is not None:
        pytest.skip(missing(task, real_data) or "")
    dropped = Counter[str]()
    assert {file: counted(task, file, real_data, dropped) for file in ROWS[name]} == ROWS[name]
    assert dropped == DROPPED.get(name, {})


def counted(task: TaskSpec, name: str, root: Path, dropped: Counter[str]) -> int:
    """Rows of a file with those dropped on purpose; its first row is rendered."""
    path, source = located(task, name, root)
    before = dropped.total()
    # the conversion of characters takes long and changes no count
    rows = read_rows(
        path,
        source.model_copy(update={"convert": None}),
        on_left_out=lambda reason, where: dropped.update([reason]),
    )
    where, row = next(rows)
    assert render(task, row, where=where).labelled
    return 1 + sum(1 for _ in rows) + dropped.total() - before


def located(task: TaskSpec, name: str, root: Path) -> tuple[Path, FileSource]:
    assert task.data is not None
    return next(
        (path, source)
        for source in task.data.files[name]
        for folder in task.data.folder
        for stem in source.path
        for path in (root / folder / stem, root / folder / f"{stem}.gz")
        if path.exists()
    )


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bq", "dureader-robust", "cluewsc", "iflytek-20"])
def test_real_splits_are_disjoint_by_document(name: str, real_data: Path) -> None:
    task = catalogue.get(name)
    keys = {
        split: {group_key(task, row) for _, row in read_split(task, split, real_data)}
        for split in layout(task, real_data).splits
    }
    apart = [split for split in keys if not (name == "bq" and split == "test")]
    assert sum(len(keys[split]) for split in apart) == len(
        set[str]().union(*(keys[split] for split in apart))
    )


@pytest.mark.real_data
def test_codings_agree_with_the_carriers_own_maps(real_data: Path) -> None:
    names = [row["Label Name"] for _, row in read_table(real_data / "CHIP-CTC/category.xlsx")]
    assert set(names) == set(catalogue.get("chip-ctc").coding)
    lines = (real_data / "IFLYTEK/labels.json").read_text("utf-8").strip().split("\n")
    assert tuple(json.loads(line)["label_des"] for line in lines) == catalogue.get("iflytek").labels
    codes = json.loads((real_data / "Toutiao-TC/label2id.json").read_text("utf-8"))["label2id"]
    assert set(codes) == set(catalogue.get("toutiao-tc").coding)
    for name, folder in (("finre", "FinRE"), ("sanwen", "SanWen")):
        relations = (real_data / folder / "relation2id.txt").read_text("utf-8").split()[::2]
        assert {catalogue.get(name).label_ids[relation] for relation in relations} == set(
            range(len(relations))
        )
    assert len((real_data / "THUCNews/class.txt").read_text().split()) == len(
        catalogue.get("thucnews").labels
    )
