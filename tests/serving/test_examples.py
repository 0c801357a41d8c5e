from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mp2.data.encode import Encoder
from mp2.serving.examples import Checked, check, split, summary
from tests.micro import micro_tokenizer

CSV = "text,label\n" + "".join(f"味道{n}很好,好\n服务{n}不好,坏\n" for n in range(6))


@cache
def encoder() -> Encoder:
    with TemporaryDirectory() as folder:
        return Encoder(micro_tokenizer(Path(folder)), 128)


def look(
    content: str = "", format_: str = "csv", rows: Any = None, task_file: str | None = None, most: int = 100
) -> tuple[Checked, Mapping[str, Any]]:
    checked = check(
        "t", rows, (format_, content) if content else None, task_file, most=most, encoder=encoder()
    )
    return checked, summary(checked, 0.25, 42)


def test_a_good_upload_is_understood() -> None:
    checked, report = look(CSV)
    assert report["usable"] and not report["problems"]
    assert report["task"]["family"] == "classification" and report["task"]["name"] == "t"
    assert report["labels"] == [{"label": "坏", "rows": 6}, {"label": "好", "rows": 6}]
    assert report["split"] == {"train": 6, "dev": 2, "held_back": 4} and len(checked.rows) == 12
    assert [w["code"] for w in report["warnings"]] == ["few", "few"]


@pytest.mark.parametrize("format_", ["csv", "tsv", "json", "jsonl"])
def test_every_format_gives_the_same_rows(format_: str) -> None:
    content = {
        "csv": CSV,
        "tsv": CSV.replace(",", "\t"),
        "jsonl": "\n".join(
            json.dumps(dict(zip(("text", "label"), line.split(","), strict=True)))
            for line in CSV.splitlines()[1:]
        )
        + "\n",
    }
    content["json"] = "[" + ",".join(content["jsonl"].splitlines()) + "]"
    assert look(content[format_], format_)[0].rows == look(CSV)[0].rows


@pytest.mark.parametrize(
    ("content", "format_", "message"),
    [
        ("味道很好,好\n", "csv", "no rows"),
        ("text,label\n味道很好\n", "csv", "line 2"),
        ("text,label\n好,好\n坏\n差,坏\n", "csv", "line 3"),
        ("{", "json", "line 1"),
        ("[1]", "json", "object"),
        ("text,label\n好,1\n坏,2\n", "csv", "numbers"),
        ("a,b\n1,2\n", "csv", "cannot tell the task"),
        ("text,label\n好,好\n坏,坏\n", "csv", "one example only"),
        ("text,label\n" + "好,好\n坏,坏\n" * 60, "csv", "at most 100"),
        ("[" * 5000, "json", "maximum recursion"),
        ("[" * 5000, "jsonl", "line 1: not readable JSON: maximum recursion"),
        (
            '{"text": %s, "label": "好"}' % ("1" * 5000),
            "jsonl",
            "line 1: not readable JSON: Exceeds the limit",
        ),
        ('[{"text": %s}]' % ("1" * 5000), "json", "line 1: not readable JSON: Exceeds the limit"),
        ('{"text": "好", "label": "\\ud83d"}', "jsonl", "line 1: half a character"),
    ],
)
def test_a_bad_upload_is_explained_without_paths(content: str, format_: str, message: str) -> None:
    _, report = look(content, format_)
    assert not report["usable"]
    said = "\n".join(problem["message"] for problem in report["problems"])
    assert message in said and "/tmp" not in said and "upload." not in said


def test_rows_that_do_not_fit_are_listed_one_by_one() -> None:
    rows = [{"text": "好", "label": "好"}, {"text": None, "label": "坏"}, {"text": " ", "label": "坏"}] * 3
    checked, report = look(rows=[*rows, {"text": "坏", "label": "坏"}])
    assert [problem["row"] for problem in report["problems"][:4]] == [2, 3, 5, 6]
    assert "row 3: its text is empty" in report["problems"][1]["message"]
    assert len(checked.rows) == 4 and not report["usable"]  # one label has a single example left
    assert summary(checked, 0.25, 42) == report


def test_repetitions_contradictions_and_long_texts_are_pointed_out() -> None:
    rows = [{"text": "好" * n, "label": "好坏"[n % 2]} for n in (1, 2, 3, 4, 200, 201)]
    rows += [{"text": "好", "label": "好"}, {"text": "好好", "label": "好"}]
    warnings = {w["code"]: w["values"] for w in look(rows=rows)[1]["warnings"]}
    assert warnings["repeated"] == {"count": 2} and warnings["contradicted"] == {"count": 1}
    assert warnings["long"] == {"count": 2, "window": 128}


def test_columns_that_are_not_read_are_pointed_out_where_no_task_file_chose_them() -> None:
    rows = [{"text": f"话{n}", "label": "好坏"[n % 2], "id": n} for n in range(20)]
    _, report = look(rows=rows)
    assert [w["values"] for w in report["warnings"]] == [{"columns": "id"}]
    assert not look(rows=rows, task_file=report["task_file"])[1]["warnings"]


def test_more_labels_than_a_prompt_can_hold_are_refused() -> None:
    rows = [{"text": "好", "label": f"种类{chr(0x4E00 + n)}"} for n in range(201)]
    checked, report = look(rows=rows, most=300)
    assert checked.task is None and not report["usable"]
    assert "at most 200 different labels, got 201" in report["problems"][0]["message"]


def test_a_task_file_may_come_along() -> None:
    task_file = (
        "name: other\nfamily: classification\nlabels: [好, 坏]\ncoding: {'1': 好, '2': 坏}\nlabel: y\n"
    )
    rows = [{"text": f"话{n}", "y": str(n % 2 + 1)} for n in range(8)]
    checked, report = look(rows=rows, task_file=task_file)
    assert report["usable"] and checked.task is not None and checked.task.name == "t"
    assert [item["label"] for item in report["labels"]] == ["好", "坏"]
    _, bad = look(rows=rows, task_file=task_file.replace("family", "famly"))
    assert "task file:2" in bad["problems"][0]["message"]


def test_a_task_file_cannot_blow_up() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n"
    for one, other in zip("bcdefghij", "abcdefghi", strict=True):
        bomb += f"{one}: &{one} [" + ",".join([f"*{other}"] * 9) + "]\n"
    rows = [{"text": "x", "label": "y"}]
    for hostile in (bomb, "a: " + "[" * 3000, "!!python/object/apply:os.system ['true']", "\x00", "a: *b"):
        _, report = look(rows=rows, task_file=hostile)
        assert not report["usable"] and report["problems"]


def test_nothing_is_held_back_where_a_label_has_too_few() -> None:
    few, enough = look(CSV.split("味道2")[0])[0], look(CSV)[0]
    parts = split(few.examples, 0.25, 1)
    assert (len(parts.train), len(parts.dev), len(parts.held_back)) == (2, 2, 0)
    assert not split(enough.examples, 0, 1).held_back
    three = look(CSV.split("味道3")[0])[0].examples
    parts = split(three, 0.5, 1)  # a half of three is two, and one cannot be split into two
    assert (len(parts.train), len(parts.dev), len(parts.held_back)) == (4, 2, 0)
    assert len(split(three, 0.25, 1).held_back) == 2
    parts = split(enough.examples, 0.5, 1)
    seen = {id(e) for e in [*parts.train, *parts.dev]}
    assert len(parts.held_back) == 6 and not seen & {id(e) for e in parts.held_back}


def test_what_the_model_cannot_read_is_told_before_it_is_tuned() -> None:
    _, report = look("text,label\n" + "很好,Good\n太差,good\n" * 6)
    assert not report["usable"] and "the labels 'Good' and 'good'" in report["problems"][0]["message"]
    rows = [{"sentence": f"我去了{n}", "target": "我"} for n in range(8)]
    rows[5]["sentence"] = "我" + "很长" * 5000  # more windows than are read: it can be learned from
    _, report = look(rows=rows)
    assert report["usable"] and not report["problems"]
    assert [w["values"]["count"] for w in report["warnings"] if w["code"] == "long"] == [1]
    lengths = (5, 6, 150, 7, 8, 9, 10, 11)
    rows = [{"question": "好" * n, "options": ["坏", "差"], "label": "坏"} for n in lengths]
    _, report = look(rows=rows)
    assert [problem["row"] for problem in report["problems"]] == [3]
    assert report["problems"][0]["message"].startswith("row 3: the option ")


def test_messages_name_lines_of_the_upload_and_no_file() -> None:
    for content, format_ in (("[]", "json"), ("text,label\n", "csv")):
        (problem,) = look(content, format_)[1]["problems"]
        assert problem["message"].startswith("the upload")


def test_limits_of_rows_hold_for_files_too() -> None:
    long = "长" * 20_001
    rows = [{"text": long, "label": "好"}, {"text": "好", "label": "坏"}]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (problem,) = look(content, "jsonl")[0].problems
    assert problem.row == 1 and "expected at most 20,000 characters, got 20,001" in problem.message
    options = {"question": "?", "options": [str(n) for n in range(201)], "label": "0"}
    (problem,) = look(json.dumps(options) + "\n", "jsonl")[0].problems
    assert "expected at most 200 values, got 201" in problem.message
    lines = "1\n" * 300
    assert look(lines, "jsonl")[0].problems[0].message == "more than 100 rows cannot be read"
    assert len(look(lines, "jsonl")[0].problems) < 110


@pytest.mark.parametrize("value", ['!!int ""', "!!bool x", "!!timestamp x", '"\\UFFFFFFFF"', '"\\U00110000"'])
def test_a_value_that_yaml_cannot_make_is_a_problem(value: str) -> None:
    task = f"name: t\nfamily: classification\nlabels: [好, 坏]\ndescription: {value}\n"
    (problem,) = look(CSV, task_file=task)[0].problems
    assert "task file" in problem.message
