"""The catalogue: what is in it, that every file is sound, and that every task renders."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mp2.errors import TaskError
from mp2.tasks import catalogue
from mp2.tasks.render import render
from mp2.tasks.spec import TaskSpec

ALL = catalogue.names()


def test_the_papers_suites() -> None:
    assert {name: len(catalogue.suite(name)) for name in catalogue.SUITES} == {
        "pretrain-38": 38,
        "unseen-data-7": 7,
        "unseen-task-7": 7,
        **dict.fromkeys(catalogue.IFLYTEK_SUITES, 1),
        "extra": 4,
    }
    up, data, tasks = (set(catalogue.suite(name)) for name in catalogue.PAPER_SUITES)
    assert data < up
    assert not tasks & up


def test_suites_are_in_the_order_of_the_papers_tables() -> None:
    ids = [facts(name).id for name in catalogue.suite("pretrain-38")]
    assert ids == list(range(1, 39))
    for name in ("unseen-data-7", "unseen-task-7"):
        assert [facts(task).table2 for task in catalogue.suite(name)] == list(range(1, 8))


def facts(name: str) -> Any:
    return catalogue.get(name).paper


def test_every_file_is_in_a_known_suite() -> None:
    for name in ALL:
        data = catalogue.get(name).data
        assert data is not None
        assert data.suites
        assert set(data.suites) <= set(catalogue.SUITES)


def test_a_miss_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'cmrc-2018'"):
        catalogue.get("cmrc2018")
    with pytest.raises(TaskError, match="did you mean 'unseen-task-7'"):
        catalogue.suite("unseen-tasks-7")
    with pytest.raises(TaskError, match=r"no suite or task 'unseen-tsk-7' .*did you mean 'unseen-task-7'"):
        catalogue.tasks_of("unseen-tsk-7")


def test_one_task_is_read_without_the_others() -> None:
    code = (
        "import mp2.tasks.spec as spec; from mp2.tasks import catalogue; read = [];"
        "load = spec.load_task; catalogue.load_task = lambda path: (read.append(path), load(path))[1];"
        "catalogue.get('bq'); print(len(read))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize("name", ALL)
def test_every_task_renders_an_invented_row(name: str) -> None:
    task = catalogue.get(name)
    for wording in ("default", *task.verbalisers):
        example = render(task.verbalised(wording), invented_row(task))
        assert example.labelled
        text = "".join(segment.text for segment in example.segments)
        assert "{" not in text
        assert example.answer == 0 if example.options else example.gold_texts == ("天晴",)


def invented_row(task: TaskSpec) -> dict[str, Any]:
    fields = {*task.template_fields, "keywords"}
    row: dict[str, Any] = {task.column(field): "今日天晴。" for field in fields}
    if task.spans_context:
        return row | {task.answer: ["天晴"], task.answer_start or "": [2]}
    if task.family == "choice":
        assert isinstance(task.options, str)
        return row | {task.options: ["天晴", "下雨"], task.label: 0}
    return row | {task.label: next(raw for raw, index in task.label_ids.items() if index == 0)}


@pytest.mark.parametrize("name", [name for name in ALL if catalogue.get(name).labels])
def test_every_label_has_a_raw_value(name: str) -> None:
    task = catalogue.get(name)
    assert set(task.label_ids.values()) == set(range(len(task.labels)))


@pytest.mark.parametrize(
    ("name", "raw", "word"),
    [
        ("afqmc", "1", "相似"),
        ("cmnli", "contradiction", "矛盾"),
        ("xnli", "contradictory", "矛盾"),
        ("kuake-qqr", "2", "相同"),
        ("baoxian-zhidao", "1", "符合"),
        ("thucnews", "2", "股票"),
        ("chip-ctc", "Capacity", "能力"),
        ("fudan-tc", "C32-Agriculture", "农业"),
        ("dmsc", "5", "非常好"),
        ("amazon", "1.0", "非常差"),
        ("toutiao-tc", "114", "股票"),
        ("tnews", "news_stock", "股票"),
        ("sanwen", "Part-Whole", "部分与整体"),
        ("cluewsc", "true", "相同"),
        ("chnsent", "negative", "负面"),
        ("iflytek", "0", "打车"),
        ("iflytek-20", "3", "租车"),
    ],
)
def test_label_codings(name: str, raw: str, word: str) -> None:
    task = catalogue.get(name)
    assert task.labels[task.label_ids[raw]] == word


def test_released_words_keep_the_coding() -> None:
    released = catalogue.get("chip-ctc").verbalised("released")
    assert released.labels[released.label_ids["Capacity"]] == "容量"


def test_iflytek_subsets_have_the_first_words_and_drop_the_rest() -> None:
    task = catalogue.get("iflytek-10")
    assert task.labels == ("打车", "租车", "政务", "新闻", "漫画", "小说", "技术", "教辅", "搞笑", "杂志")
    assert task.data is not None
    dropped = task.data.files["dev"][0].drop["label"]
    assert len(dropped) == 109
    assert not set(dropped) & set(task.coding)


def test_downstream_pretraining_tasks_have_four_splits() -> None:
    for name in catalogue.suite("unseen-data-7"):
        data = catalogue.get(name).data
        assert data is not None
        for layout in data.layouts:
            assert set(layout.splits) == {"train", "dev", "pool", "test"}
