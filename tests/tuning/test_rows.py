"""What is held out of a user's rows: of every label, whole texts, whatever the options are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mp2.errors import DataError, TaskError
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import TaskSpec
from mp2.tuning.rows import hold_out, labelled_rows

MOODS = TaskSpec(name="moods", family="classification", labels=("正面", "负面"))


def _moods(*pairs: tuple[str, str]) -> list[MRCExample]:
    return [render(MOODS, {"text": text, "label": label}) for text, label in pairs]


def test_rows_of_one_text_stay_on_one_side() -> None:
    for seed in range(10):
        rows = _moods(*[(f"第{i // 3}家店", MOODS.labels[i // 3 % 2]) for i in range(24)])
        train, dev = hold_out(rows, 0.33, seed)
        assert len(train) + len(dev) == 24 and dev
        assert not {row.segments for row in train} & {row.segments for row in dev}


def test_questions_about_one_text_stay_on_one_side_where_there_are_several() -> None:
    task = TaskSpec(name="reading", family="reading")
    rows = [
        render(task, {"context": f"第{i // 3}天下雨。", "question": f"问{i}", "answer": "下雨"})
        for i in range(12)
    ]
    train, dev = hold_out(rows, 0.33, 0)
    assert (len(train), len(dev)) == (6, 6) and not {r.context for r in train} & {r.context for r in dev}
    assert [len(part) for part in hold_out(rows[:3], 0.33, 0)] == [2, 1]


def test_a_row_without_a_text_is_refused_also_where_there_may_be_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = ({"context": text, "question": text, "answer": ""} for text in ("下雨了。", ""))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(TaskError, match=r"rows\.jsonl:2: its text is empty"):
        labelled_rows(file, None)


def test_of_every_label_there_is_one_on_either_side_or_it_is_refused() -> None:
    train, dev = hold_out(_moods(("好", "正面"), ("很好", "正面"), ("差", "负面"), ("很差", "负面")), 0.1, 0)
    assert {row.answer for row in train} == {row.answer for row in dev} == {0, 1}
    for texts in (("差",), ("差", "差")):
        rows = _moods(("好", "正面"), ("很好", "正面"), *((text, "负面") for text in texts))
        with pytest.raises(DataError, match=r"reviews\.csv: label '负面' has one example only, or one text"):
            hold_out(rows, 0.33, 0, "reviews.csv")


def test_the_place_of_the_right_option_is_no_label_where_every_row_has_options_of_its_own() -> None:
    task = TaskSpec(name="choices", family="choice", template="{text}")
    rows = [
        render(task, {"text": f"第{i}题", "options": [f"甲{i}", f"乙{i}"], "label": int(i == 3)})
        for i in range(6)
    ]
    assert [row.answer for row in rows] == [0, 0, 0, 1, 0, 0]
    train, dev = hold_out(rows, 0.33, 0)
    assert (len(train), len(dev)) == (4, 2)
