"""Tasks from plain tables, and the doubts that are handed back to the user."""

from __future__ import annotations

from typing import Any

import pytest

from mp2.errors import TaskError
from mp2.tasks import catalogue
from mp2.tasks.infer import dump_task, infer_task, unread_columns
from mp2.tasks.render import render
from mp2.tasks.spec import TaskSpec, parse_task

Rows = list[dict[str, Any]]


def rows(columns: str, *values: tuple[Any, ...]) -> Rows:
    return [dict(zip(columns.split(","), value, strict=True)) for value in values]


CASES: list[tuple[Rows, str, dict[str, Any]]] = [
    (rows("text,label", ("a", "物流"), ("b", "退款")), "classification", {"labels": ("物流", "退款")}),
    (rows("Text ,LABEL", ("a", "物流"), ("b", "退款")), "classification", {"label": "LABEL"}),
    (rows("文本,标签", ("a", "差评"), ("b", "好评")), "classification", {"labels": ("负面", "正面")}),
    (
        rows("content,sentiment", ("a", "Positive"), ("b", "negative"), ("c", "neutral")),
        "classification",
        {"labels": ("负面", "中性", "正面")},
    ),
    (rows("label,review", (1, "a"), (0.0, "b")), "classification", {"coding": {"0": "负面", "1": "正面"}}),
    (rows("sentence1,sentence2,label", ("a", "b", 0), ("c", "d", 1)), "pair", {"labels": ("矛盾", "相似")}),
    (
        rows("premise,hypothesis,label", ("a", "b", "entailment"), ("c", "d", "neutral")),
        "pair",
        {"labels": ("蕴含", "中立"), "coding": {"entailment": "蕴含", "neutral": "中立"}},
    ),
    (rows("sentence,target", ("东航起飞", "东航")), "extraction", {"fields": {"context": "sentence"}}),
    (rows("context,question,answer", ("东航", "谁？", "东航")), "reading", {"no_answer": False}),
    (rows("文章,问题,答案", ("东航", "谁？", "东航"), ("东航", "啥？", "")), "reading", {"no_answer": True}),
    (
        rows("question,option_a,option_b,answer", ("谁？", "甲", "乙", "A")),
        "choice",
        {"options": ("option_a", "option_b"), "label": "answer"},
    ),
    (
        [
            {"question": "谁？", "option1": "甲", "option2": "乙", "label": "1"},
            {"question": "谁？", **{f"option{n}": str(n * 11) for n in range(1, 11)}, "label": "10"},
        ],
        "choice",
        {"options": tuple(f"option{n}" for n in range(1, 11))},  # those of all rows
    ),
    (
        rows("content,question,answer", ("东航", "谁？", "东航")),
        "reading",
        {"fields": {"context": "content"}},  # the question is not left out
    ),
    (
        rows("title,context,question,answer", ("新闻", "东航", "谁？", "东航")),
        "reading",
        {"fields": {}},
    ),
    (
        rows("内容,问题,选项1,选项2,答案", ("文", "谁？", "甲", "乙", "1")),
        "choice",
        {"fields": {"question": "问题", "document": "内容"}},
    ),
    (
        rows("sentence,target,answer_start", ("甲和甲", "甲", "2")),
        "extraction",
        {"answer_start": "answer_start"},
    ),
    (
        rows("text,label", ("a", "满意"), ("b", "好评"), ("c", "差评"), ("d", "一般")),
        "classification",
        {"labels": ("一般", "好评", "差评", "满意")},  # none of them is merged with another
    ),
    (
        rows("text,label", ("a", "neg"), ("b", "negative"), ("c", "Positive")),
        "classification",
        {"labels": ("负面", "正面")},
    ),
    (rows("title,label,keyword", ("a", "物流", "b"), ("b", "退款", "c")), "classification", {}),
    (
        rows("context,question,options,label", ("文", "谁？", ["甲", "乙"], 1)),
        "choice",
        {"options": "options"},
    ),
]


@pytest.mark.parametrize(("table", "family", "facts"), CASES)
def test_columns_and_labels_tell_the_task(table: Rows, family: str, facts: dict[str, Any]) -> None:
    task = infer_task(table, "My Table 2")
    assert (task.name, task.family) == ("my-table-2", family)
    for key, value in facts.items():
        assert getattr(task, key) == value
    for row in table:
        assert render(task, row).labelled
    assert parse_task(dump_task(task)) == task


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (rows("tweet,polarity", ("a", "b")), "cannot tell the task from the columns 'tweet', 'polarity'"),
        ([], r"the columns \(none\)"),
        (rows("text,label", ("a", 0), ("b", 1)), r"numbers as labels \(0, 1\), and the model reads words"),
        (rows("text,label", ("a", 123), ("b", "物流")), r"numbers as labels \(123\), and"),
        (
            rows("text,lable", ("a", "物流"), ("b", "退款")),
            "'text', 'lable'; did you mean 'label'\\? expected",
        ),
        (
            rows("title,content,label", ("a", "b", "x")),
            "columns 'content' and 'title': either could be the text",
        ),
        (
            rows("query,title,label", ("a", "b", "0")),
            "'title' and 'query': either could .* call them sentence1",
        ),
        (rows("text,title,target", ("a", "b", "a")), "columns 'text' and 'title': either could be the text"),
        (
            rows("text,label,category", ("a", "b", "x")),
            "columns 'label' and 'category': either could be the label",
        ),
        (
            rows(
                "question,option_a,option_b,option_c,label", ("a", "b", "c", "d", 1), ("a", "b", "c", "d", 2)
            ),
            "column 'label': numbers from 1 to 2, and an index counts from 0; write letters",
        ),
        (
            rows("sentence1,sentence2,label,category", ("a", "b", "x", "y")),
            "columns 'label' and 'category': either could be the label",
        ),
        (
            rows("sentence1,sentence2,text,label", ("a", "b", "c", "x")),
            "columns 'sentence1' and 'text': either could be the text",
        ),
        (
            rows("sentence,target,keyword", ("a", "a", "a")),
            "columns 'target' and 'keyword': either could be the target",
        ),
        (
            rows("sentence,question,target", ("a", "b", "a")),
            "columns 'sentence' and 'question': either could be the text",
        ),
        (
            rows("context,passage,question,answer", ("a", "b", "c", "a")),
            "columns 'context' and 'passage': either could be the text that the question is about",
        ),
        (
            rows("article,text,question,options,label", ("a", "b", "c", ["d", "e"], 0)),
            "columns 'article' and 'text': either could be the text that the question is about",
        ),
        (rows("text,label", ("a", "x")), "expected at least 2 different labels"),
        (
            rows("text,target,label", ("a", "b", "好")),
            "columns 'target' and 'label': a label of the text would leave 'target' out",
        ),
        (rows("premise,hypothesis,label", ("a", "b", "0"), ("a", "c", "1")), "numbers as labels"),
        (rows("text,label", ("a", "x" * 50), ("b", "y")), "looks like a text, not like a label"),
    ],
)
def test_doubts_are_not_guessed_away(table: Rows, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        infer_task(table, "t")


@pytest.mark.parametrize("labels", [("物流", "退款"), ("好评", "差评"), ("负面", "正面")])
def test_a_position_in_the_alphabet_is_no_label_of_an_inferred_task(labels: tuple[str, str]) -> None:
    task = infer_task(rows("text,label", *((str(n), label) for n, label in enumerate(labels))), "t")
    with pytest.raises(TaskError, match=r"unknown label '0' of task 't'; valid: \w+, \w+(, 差评, 好评)?$"):
        render(task, {"text": "a", "label": 0})


def test_label_order_does_not_depend_on_the_rows() -> None:
    table = rows("text,label", ("a", "物流"), ("b", "退款"), ("c", "账号"))
    assert infer_task(table, "t") == infer_task(table[::-1], "t")


@pytest.mark.parametrize(
    ("table", "unread"),
    [
        (rows("id,text,label", (1, "很好", "好"), (2, "很差", "差")), ["id"]),
        (rows("sentence1,sentence2,label,target", ("a", "b", "0", "c"), ("a", "c", "1", "d")), ["target"]),
        (rows("context,question,answer,answer_strat", ("下雨", "天气", "雨", 1)), ["answer_strat"]),
        (rows("context,question,answer,answer_start", ("下雨", "天气", "雨", 1)), []),
        (rows("question,option_a,option_b,label,why", ("天气", "雨", "雪", "A", "冷")), ["why"]),
        (rows("sentence,target", ("这家店很好", "店")), []),
    ],
)
def test_columns_that_say_nothing_to_the_task_are_found(table: Rows, unread: list[str]) -> None:
    assert unread_columns(infer_task(table, "t"), table) == unread


def test_a_name_without_latin_letters_becomes_a_valid_one() -> None:
    assert infer_task(CASES[0][0], "工单").name == "task"


@pytest.mark.parametrize("name", catalogue.names())
def test_every_catalogue_task_survives_a_round_trip(name: str) -> None:
    task = catalogue.get(name)
    assert parse_task(dump_task(task)) == task


def test_labels_of_any_characters_survive_a_round_trip() -> None:
    labels = ("x\x85y", "b\u2028c", "yes", "1", "\ufeffq", "tab\there", ": #", "'\"")
    task = TaskSpec(name="odd", family="classification", labels=labels)
    assert parse_task(dump_task(task)).labels == labels
