"""Rows of every family in the one format, and rows that do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mp2.errors import TaskError, Where
from mp2.tasks.render import render
from mp2.tasks.spec import TaskSpec

HERE = Where("rows.csv", 7)


def task(**keys: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", **keys})


TOPIC = task(family="classification", labels=("体育", "财经"), coding={"0": "体育", "1.0": "财经"})
CHOICE = task(family="choice", fields={"document": "d", "question": "q"}, label="a")
READING = task(family="reading", answer_start="start")
MAYBE = task(family="reading", no_answer=True)


def test_classification() -> None:
    example = render(TOPIC, {"text": "球赛", "label": 0}, where=HERE)
    assert "".join(segment.text for segment in example.segments) == '主题识别："球赛"的主题是？选项：'
    assert [segment.role for segment in example.segments] == ["literal", "cut", "literal"]
    assert (example.options, example.answer, example.gold_texts) == (("体育", "财经"), 0, ("体育",))


@pytest.mark.parametrize("label", ["0", 0, 0.0, " 0 ", "体育"])
def test_labels_in_any_coding(label: Any) -> None:
    assert render(TOPIC, {"text": "球赛", "label": label}).answer == 0


def test_unlabelled_rows_need_no_label() -> None:
    example = render(TOPIC, {"text": "球赛"}, labelled=False)
    assert example.answer is None
    assert not example.labelled


@pytest.mark.parametrize("right", [1, "1", "雨", "B", "b"])
def test_the_right_option_by_index_text_or_letter(right: Any) -> None:
    row = {"d": "今天下雨。", "q": "天气？", "options": ["晴", "雨", "雪"], "a": right}
    example = render(CHOICE, row)
    assert example.options == ("晴", "雨", "雪")
    assert example.answer == 1


def test_options_in_columns_of_their_own_may_be_ragged() -> None:
    ragged = task(family="choice", template="{q}", options=("A", "B", "C"))
    row = {"q": "天气？", "A": "晴", "B": "雨", "label": "B"}
    for last in ({"C": ""}, {"C": None}, {}):
        assert render(ragged, row | last).gold_texts == ("雨",)
    with pytest.raises(TaskError, match="an option is empty"):  # left out, it would make C the second
        render(ragged, row | {"B": "", "C": "雪", "label": "C"})


def test_a_number_is_the_text_of_an_option_or_that_of_its_column_or_an_index() -> None:
    assert render(CHOICE, {"d": "", "q": "1 + 1", "options": ["1", "2", "3"], "a": 2}).answer == 1
    numbered = task(family="choice", template="{q}", options=("option1", "option2", "option3"))
    row = {"q": "天气？", "option1": "晴", "option2": "雨", "option3": ""}
    assert [render(numbered, row | {"label": label}).answer for label in ("1", 2, "A")] == [0, 1, 0]
    for label in ("0", "3"):
        with pytest.raises(TaskError, match=f"'{label}' is none of the 2 options"):
            render(numbered, row | {"label": label})


def test_a_letter_or_number_names_a_column_wherever_it_stands() -> None:
    texts = {
        "option_d": "电",
        "option_b": "桌",
        "option_a": "苹",
        "D": "乙",
        "A": "甲",
        "option1": "二",
        "option0": "一",
    }
    for columns, label, right in (
        (("option_d", "option_b", "option_a"), "a", "苹"),
        (("D", "A"), "D", "乙"),
        (("option1", "option0"), "0", "一"),
        (("option1", "option0"), "A", "一"),
    ):
        choice = task(family="choice", template="{q}", options=columns)
        assert render(choice, {"q": "", "label": label} | texts).gold_texts == (right,)
    choice = task(family="choice", template="{q}", options=("option_a", "option_b", "option_d"))
    with pytest.raises(TaskError, match="'C' is none of the 3 options"):
        render(choice, {"q": "", "label": "C"} | texts)


def test_a_blank_answer_is_none() -> None:
    row = {"context": "雨， 又是雨。", "question": "天气？", "answer": " ", "start": None}
    with pytest.raises(TaskError, match="no answer given"):
        render(READING, row)


def test_the_answer_is_taken_at_its_offset_and_else_searched() -> None:
    row = {"context": "雨，又是雨。", "question": "天气？", "answer": "雨", "start": 4}
    assert render(READING, row).spans == ((4, 5),)
    assert render(READING, row | {"start": -1}).spans == ((0, 1),)
    assert render(READING, row | {"start": 3}).spans == ((0, 1),)
    assert render(READING, row | {"start": "4.0"}).spans == ((4, 5),)  # a table with empty cells
    assert render(READING, row | {"start": ""}).spans == ((0, 1),)


def test_of_several_gold_answers_one_in_the_context_is_enough() -> None:
    row = {
        "context": "晴转多云",
        "question": "天气？",
        "answer": ["晴天", "晴", "多云", "晴"],
        "start": [-1] * 4,
    }
    assert render(READING, row).gold_texts == ("晴", "多云")
    with pytest.raises(TaskError, match=r"rows.csv:7: the answer '晴天' does not occur in the context"):
        render(READING, row | {"answer": ["晴天"]}, where=HERE)


@pytest.mark.parametrize("answer", ["", [], [""], None, math.nan])
def test_rows_without_an_answer(answer: Any) -> None:
    row = {"context": "多云", "question": "谁？", "answer": answer}
    example = render(MAYBE, row)
    assert example.unanswerable
    assert [segment.text for segment in example.segments if segment.role == "no_answer"] == ["没有答案"]
    with pytest.raises(TaskError, match="no answer given"):
        render(READING, row)


@pytest.mark.parametrize(
    ("spec", "row", "says"),
    [
        (TOPIC, {"txt": "球赛", "label": 0}, "column 'text' is missing; did you mean 'txt'?"),
        (TOPIC, {"text": "球赛", "labl": 0}, "column 'label' is missing; did you mean 'labl'?"),
        (
            TOPIC,
            {"text": "球赛", "label": "体育类"},
            "unknown label '体育类' of task 't'; did you mean '体育'?",
        ),
        (TOPIC, {"text": math.nan, "label": 0}, "column 'text': expected text, got NaN"),
        (TOPIC, {"text": None, "label": 0}, "column 'text': expected text, got nothing"),
        (TOPIC, {"text": ["球赛"], "label": 0}, "column 'text': expected text, got list"),
        (
            CHOICE,
            {"d": "", "q": "", "options": "晴|雨", "a": 0},
            "column 'options': expected a list of options, got '晴|雨'; a table has a column for each",
        ),
        (
            CHOICE,
            {"d": "", "q": "", "option": [], "a": 0},
            "column 'options' is missing; did you mean 'option'?",
        ),
        (CHOICE, {"d": "", "q": "", "options": ["晴"], "a": 0}, "expected at least 2 options, got 1"),
        (CHOICE, {"d": "", "q": "", "options": ["晴", " "], "a": 0}, "an option is empty"),
        (CHOICE, {"d": "", "q": "", "options": ["晴", "雨"], "a": 2}, "'2' is none of the 2 options"),
        (CHOICE, {"d": "", "q": "", "options": ["晴", "雨"], "a": "1" * 5000}, "is none of the 2 options"),
        (CHOICE, {"d": "", "q": "", "options": ["晴", None], "a": 0}, "expected text, got nothing"),
        (CHOICE, {"d": "", "q": "", "options": ["晴", "\ud83d"], "a": 0}, "'options': half a character"),
        (TOPIC, {"text": "球\ud83d", "label": 0}, "column 'text': half a character"),
        (
            READING,
            {"context": "雨", "question": "", "answer": "雨", "start": "一"},
            "column 'start': expected an offset in characters, got '一'",
        ),
        (
            READING,
            {"context": "雨", "question": "", "answer": ["雨"], "start": [math.inf]},
            "column 'start': expected an offset in characters, got inf",
        ),
        (
            READING,
            {"context": "雨", "question": "", "answers": "雨"},
            "column 'answer' is missing; did you mean",
        ),
        (READING, {"context": "雨", "question": "", "answer": 3}, "column 'answer': expected text, got 3"),
    ],
)
def test_rows_that_do_not_fit(spec: TaskSpec, row: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError) as caught:
        render(spec, row, where=HERE)
    assert str(caught.value).startswith("rows.csv:7: ")
    assert says in str(caught.value)
