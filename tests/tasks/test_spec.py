"""Task files: what is read, and what each mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mp2.errors import TaskError
from mp2.tasks.infer import dump_task
from mp2.tasks.spec import TaskSpec, load_task, parse_task

GOOD = """\
name: weather
family: classification
labels: [晴, 雨]
coding: {0: 晴, no: 雨}
fields:
  text: report
"""


def test_defaults_are_filled_in() -> None:
    task = parse_task(GOOD)
    assert task.template == '主题识别："{text}"的主题是？选项：'
    assert task.cut == ("text",)
    assert task.metric == "accuracy"
    assert task.column("text") == "report"


def test_keys_are_the_text_that_is_written() -> None:
    assert parse_task(GOOD).label_ids == {"晴": 0, "雨": 1, "0": 0, "no": 1}


def test_labels_may_be_given_by_index_unless_they_are_numbers() -> None:
    words = TaskSpec.model_validate({"name": "a", "family": "classification", "labels": ("晴", "雨")})
    assert words.label_ids["1"] == 1
    numbers = TaskSpec.model_validate({"name": "a", "family": "classification", "labels": ("1", "2")})
    assert numbers.label_ids == {"1": 0, "2": 1}


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("labels:", "lables:"), 3, "unknown key 'lables'; did you mean 'labels'?"),
        (("name: weather\n", ""), 1, "key 'name' is missing"),
        (("name: weather", "name: weather\nname: again"), 2, "key 'name' stands twice (first in line 1)"),
        (("[晴, 雨]", "[晴, 晴]"), 3, "labels: '晴' stands twice"),
        (("[晴, 雨]", "[晴]"), 3, "labels: expected at least 2 label words"),
        (("[晴, 雨]", "[晴, yes]"), 3, "got True; write it in quotes"),
        (("0: 晴", "0: 晴天"), 4, "coding: '0' maps to '晴天', which is no label; did you mean"),
        (
            ("  text: report", "  txt: report"),
            5,
            "fields: 'txt' is not a field of the template; did you mean 'text'?",
        ),
        (
            ("classification", "clasification"),
            2,
            "family: 'clasification' is not valid; did you mean 'classi",
        ),
        (
            ("name: weather", "name: Weather"),
            1,
            "name: expected lower-case letters, digits, '.', '_' and '-'",
        ),
        (("[晴, 雨]", "晴"), 3, "labels: expected a list, got '晴'"),
        (("coding: {0: 晴, no: 雨}", "coding:"), 4, "coding: expected keys with values, got None"),
        (("fields:", "version: '2'\nfields:"), 5, "version: expected a whole number, got '2'"),
        (
            ("fields:", "options: [3]\nfields:"),
            5,
            "options: expected a column or a list of columns, got (3,)",
        ),
        (("fields:", "template: no slot\nfields:"), 5, "template: has no {field} slot"),
        (("fields:", "template: '{text'\nfields:"), 5, "template: "),
        (("fields:", "template: '{text:4}'\nfields:"), 5, "template: {text:4} is not a plain field name"),
        (("fields:", "template: '{text!r}'\nfields:"), 5, "template: {text!r} is not a plain field name"),
        (("fields:", "cut: [body]\nfields:"), 5, "cut: 'body' is not a field of the template"),
        (("coding: {0", "coding: {{0"), 5, "not valid YAML"),
    ],
)
def test_each_mistake_names_file_line_and_remedy(change: tuple[str, str], line: int, says: str) -> None:
    with pytest.raises(TaskError) as caught:
        parse_task(GOOD.replace(*change), "weather.yaml")
    assert f"weather.yaml:{line}: " in str(caught.value)
    assert says in str(caught.value)


def test_mistakes_deep_in_the_data_section_are_placed() -> None:
    text = GOOD + (
        "data:\n  folder: weather\n  source: us\n  licence: none\n  files:\n"
        "    all:\n      path: rows.csv\n      formt: csv\n"
        "  layouts:\n  - splits:\n      train: {files: al}\n"
    )
    with pytest.raises(TaskError) as caught:
        parse_task(text, "weather.yaml")
    assert "weather.yaml:14: unknown key" in str(caught.value)
    assert "did you mean 'format'?" in str(caught.value)
    text = text.replace("formt", "format")
    with pytest.raises(TaskError, match=r":17: data\.layouts\.0\.splits\.trian: .*did you mean 'train'\?"):
        parse_task(text.replace("train:", "trian:"))
    with pytest.raises(TaskError, match=r"'al' is none of the files; did you mean 'all'\?"):
        parse_task(text)
    for key, says in (
        ("delimiter: '||'", "delimiter: expected one character for csv, got"),
        ("replace: {'(': ''}", r"replace: '\(' is no regular expression: missing \)"),
    ):
        with pytest.raises(TaskError, match=says) as caught:
            parse_task(text.replace("      format: csv", f"      format: csv\n      {key}"), "weather.yaml")
        assert "weather.yaml:12: " in str(caught.value)  # where the file is described


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(TaskError) as caught:
        parse_task(GOOD.replace("labels:", "lables:").replace("name: weather", "nam: weather"))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "value", ["2024-02-30", "0x_", "!!float x", '!!int ""', "!!bool x", "!!timestamp x", "9" * 5000]
)
def test_a_date_or_number_that_cannot_be_is_told(value: str) -> None:
    with pytest.raises(TaskError, match="<task>: not valid YAML: "):
        parse_task(f"name: moods\nversion: {value}\n")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_task_file_is_a_mapping(text: str) -> None:
    with pytest.raises(TaskError, match="expected a mapping"):
        parse_task(text)


@pytest.mark.parametrize("value", ["&a [*a]", "&a {b: *a}", "[" * 900 + "]" * 900, "[" * 3000 + "]" * 3000])
def test_values_in_themselves_or_too_deep_are_told(value: str) -> None:
    with pytest.raises(TaskError, match=r"<task>: values are nested too deep, or in themselves"):
        parse_task(f"name: {value}\n")


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lists = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)]
    with pytest.raises(TaskError, match=r"<task>: expected at most 100,000 keys and values"):
        parse_task("a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(lists))
    assert parse_task(GOOD + "description: &one a\nanswer: *one\n").answer == "a"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such task file"):
        load_task(tmp_path / "absent.yaml")
    path = tmp_path / "gb.yaml"
    path.write_bytes("name: 天气".encode("gb18030"))
    with pytest.raises(TaskError, match="cannot be read as UTF-8"):
        load_task(path)


def test_families_differ_in_what_they_need() -> None:
    with pytest.raises(TaskError, match="has no fixed labels"):
        parse_task("name: a\nfamily: choice\nlabels: [甲, 乙]\n")
    with pytest.raises(TaskError, match=r"needs a \{context\} slot"):
        parse_task("name: a\nfamily: reading\ntemplate: '{question}'\n")
    with pytest.raises(TaskError, match="no_answer: needs family 'reading'"):
        parse_task("name: a\nfamily: extraction\nno_answer: true\n")
    assert parse_task("name: a\nfamily: reading\n").cut == ("context",)


def test_nothing_is_cut_where_the_file_says_so() -> None:
    task = parse_task(GOOD + "cut: []\n")
    assert task.cut == ()
    assert parse_task(dump_task(task)) == task


def test_a_verbaliser_with_labels_keeps_the_coding() -> None:
    task = parse_task(GOOD + "verbalisers:\n  old:\n    labels: [好, 坏]\n    template: '{text}天气？'\n")
    old = task.verbalised("old")
    assert old.labels == ("好", "坏")
    assert [old.label_ids[raw] for raw in ("0", "no", "雨")] == [0, 1, 1]
    assert old.column("text") == "report"
    assert task.verbalised("default") is task
    with pytest.raises(TaskError, match="did you mean 'old'"):
        task.verbalised("odl")


@pytest.mark.parametrize(
    ("keys", "line", "says"),
    [
        ("note: a\n    labels: [好, 好]", 10, "verbalisers.old.labels: '好' stands twice"),
        ("template: none", 9, "verbalisers.old.template: has no {field} slot"),
        ("coding: {0: 雪}", 9, "verbalisers.old.coding: '0' maps to '雪', which is no label"),
    ],
)
def test_a_mistake_in_a_verbaliser_is_placed_there(keys: str, line: int, says: str) -> None:
    with pytest.raises(TaskError) as caught:
        parse_task(GOOD + f"verbalisers:\n  old:\n    {keys}\n", "weather.yaml")
    assert f"weather.yaml:{line}: {says}" in str(caught.value)


def test_a_verbaliser_of_another_size_is_refused_when_the_file_is_read() -> None:
    with pytest.raises(TaskError, match="expected 2 label words or a coding"):
        parse_task(GOOD + "verbalisers:\n  old:\n    labels: [好, 坏, 中]\n")
