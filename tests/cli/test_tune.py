"""``mp2 tune`` and ``mp2 predict`` end to end, as a user runs them, and her mistakes."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mp2.cli import main
from mp2.cli.main import app
from mp2.errors import ConfigError, Mp2Error, TaskError
from mp2.model.checkpoint import Base
from mp2.tasks.render import render
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import load_adapter
from mp2.tuning.methods import METHODS
from mp2.tuning.objective import Objective
from mp2.tuning.stages import Bayes
from tests.tuning.test_default import taught

GOOD = "text,label\n" + "".join(
    f"{name}{word},{label}\n"
    for name in ("味道", "服务", "店", "音乐", "手机", "咖啡")
    for word, label in (("很好喜欢", "好评"), ("太差难看", "差评"))
)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tune(tmp_path: Path, base: Base, text: str | bytes, *more: str) -> Result:
    file = tmp_path / "shots.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return run(
        "tune", file, "--out", tmp_path / "a", "--model", base.path, "--method", "mp2-deep-gd-router", *more
    )


def test_a_csv_becomes_an_adapter_that_answers(base: Base, tmp_path: Path) -> None:
    result = tune(tmp_path, base, GOOD, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["method"] == "mp2-deep-gd-router" and summary["tuned_parameters"] == 9
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "adapter.json",
        "adapter.safetensors",
        "task.yaml",
    }
    (tmp_path / "new.csv").write_text("text\n服务很好\n音乐难看\n", encoding="utf-8")
    found = run("predict", tmp_path / "a", "--input", tmp_path / "new.csv", "--model", base.path)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(lines) == 2 and all(line["label"] in ("正面", "负面") for line in lines)
    assert all(sum(line["scores"].values()) == pytest.approx(1, abs=1e-4) for line in lines)
    half = run(
        "predict",
        tmp_path / "a",
        "服务很好",
        "音乐难看",
        "--model",
        base.path,
        "--precision",
        "bf16",
        "--json",
    )
    rounded = [json.loads(line) for line in half.stdout.splitlines()]
    assert rounded != lines
    for line, other in zip(lines, rounded, strict=True):
        assert other["scores"] == pytest.approx(line["scores"], abs=0.02)


def test_labels_that_the_model_was_never_taught_are_told_and_tuned_in_their_own_way(
    base: Base, tmp_path: Path
) -> None:
    """It was taught those of the tasks of its bank."""
    other = taught(base, tmp_path / "base", "chnsent", "tnews")
    new = GOOD.replace("好评", "物流").replace("差评", "退款")
    told = "was taught none of these labels"
    file = tmp_path / "rows.csv"
    for text, model, method in (
        (new, other, "mp2-deep-labels"),
        (GOOD, other, "mp2-deep-gd"),
        (new, base, "mp2-deep-gd"),
    ):
        file.write_text(text, encoding="utf-8")
        steps = ("--set", "2.steps=2", "--replace")
        result = run("tune", file, "--out", tmp_path / "a", "--model", model.path, *steps)
        assert result.exit_code == 0 and (told in result.stderr) == (method == "mp2-deep-labels")
        assert load_adapter(tmp_path / "a").method == method
    assert told in tune(tmp_path, other, new, "--replace").stderr  # also of a method that was named


def test_a_black_box_search_shows_its_best_and_goes_on_from_its_folder(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = METHODS["mp2-deep-bb-router"]
    monkeypatch.setitem(METHODS, row.name, replace(row, stages=(Bayes(calls=12, random=8),)))
    arguments = ("--method", "mp2-deep-bb-router", "--search", str(tmp_path / "search"))
    first = tune(tmp_path, base, GOOD, *arguments)
    assert first.exit_code == 0, first.output
    assert "best 0." in first.stderr or "best 1." in first.stderr
    assert "most like the known tasks" in first.stdout
    lines = (tmp_path / "search" / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    again = tune(tmp_path, base, GOOD, *arguments, "--replace", "--json")
    assert json.loads(again.stdout)["calls"] == {"0": 12}
    assert (tmp_path / "search" / "calls.jsonl").read_text(encoding="utf-8").splitlines() == lines
    refused = tune(tmp_path, base, GOOD, *arguments, "--replace", "--precision", "bf16")
    assert "precision" in str(refused.exception)
    refused = tune(tmp_path, base, GOOD, "--search", str(tmp_path / "search"), "--replace")
    assert "no black-box stage" in str(refused.exception)


def test_rows_that_lie_in_the_adapters_folder_are_not_replaced_with_it(base: Base, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("adapter.json", "rows.csv"):
        (tmp_path / "a" / name).write_text(GOOD, encoding="utf-8")
    arguments = ("--out", tmp_path / "a", "--model", base.path, "--replace")
    refused = run("tune", tmp_path / "a" / "rows.csv", *arguments)
    assert refused.exit_code and "rows.csv, which would be lost" in str(refused.exception)
    assert (tmp_path / "a" / "rows.csv").read_text(encoding="utf-8") == GOOD


def test_dev_rows_that_are_train_rows_are_told(base: Base, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(GOOD + "新的很好,好评\n新的太差,差评\n", encoding="utf-8")
    result = tune(tmp_path, base, GOOD, "--dev", str(tmp_path / "dev.csv"), "--json")
    assert "12 of the 14 dev rows are train rows too" in result.stderr
    json.loads(result.stdout)


def test_columns_that_are_not_read_are_told(base: Base, tmp_path: Path) -> None:
    rows = [f"{number},{row}" for number, row in enumerate(GOOD.splitlines())]
    rows[0] = "number" + rows[0][1:]
    result = tune(tmp_path, base, "\n".join(rows))
    assert result.exit_code == 0 and "columns that are not read: number\n" in result.stderr


def test_refit_learns_from_all_rows_where_a_method_can(base: Base, tmp_path: Path) -> None:
    result = tune(tmp_path, base, GOOD, "--refit", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["refit"] == 12
    assert load_adapter(tmp_path / "a").facts["refit"] == 12
    said = tune(tmp_path, base, GOOD, "--refit", "--replace").stdout
    assert "learned again from all 12 rows" in said
    refused = tune(tmp_path, base, GOOD, "--refit", "--replace", "--method", "mp2-deep-bb-router")
    assert refused.exit_code and "cannot learn again" in str(refused.exception)


def test_labels_are_calibrated_where_a_task_has_some(base: Base, tmp_path: Path) -> None:
    result = tune(tmp_path, base, GOOD, "--calibrate", "--refit", "--json")
    assert result.exit_code == 0, result.output
    assert len(load_adapter(tmp_path / "a").label_offsets) == 2
    assert tune(tmp_path, base, GOOD, "--replace", "--json").exit_code == 0
    assert load_adapter(tmp_path / "a").label_offsets == ()
    refused = tune(tmp_path, base, GOOD, "--calibrate", "--replace", "--method", "setfit")
    assert refused.exit_code and "prefers no label" in str(refused.exception)


def test_a_search_that_cannot_go_on_leaves_its_best_adapter(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = Objective.__call__, itertools.count(1)
    monkeypatch.setattr(
        Objective,
        "__call__",
        lambda self, asked: real(self, asked) * (nan if [next(calls) for _ in asked][-1] > 5 else 1),
    )
    (tmp_path / "shots.csv").write_text(GOOD, encoding="utf-8")
    words = ["tune", tmp_path / "shots.csv", "--out", tmp_path / "a", "--model", base.path]
    settings = ["--method", "mp2-deep-bb-router", "--set", "calls=6", "--set", "random=2"]
    monkeypatch.setattr(sys, "argv", ["mp2", *map(str, words), *settings])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "nan in call 6" in said and f"so far is in {tmp_path / 'a'}" in said
    kept = load_adapter(tmp_path / "a")
    assert kept.facts["calls"] == {"0": 5} and kept.facts["ended"] == {"0": "error"}


def test_a_setting_on_the_command_line_reaches_the_stage_and_stands_in_the_adapter(
    base: Base, tmp_path: Path
) -> None:
    done = tune(tmp_path, base, GOOD, "--set", "steps=3", "--set", "1.eval_every=1")
    assert done.exit_code == 0, done.output
    facts = load_adapter(tmp_path / "a").facts
    assert [point["step"] for point in facts["curve"]] == [0, 1, 2, 3]
    assert facts["settings"] == "Gradient(lr={'router': 0.3}, steps=3, eval_every=1)"


@pytest.mark.parametrize(
    ("method", "setting", "said"),
    [
        ("mp2-deep-gd-router", "step=3", "a setting 'step'; did you mean 'steps'"),
        ("mp2-deep-gd-router", "steps", "--set: expected NAME=VALUE, got 'steps'"),
        ("mp2-deep-gd-router", "steps=few", "setting steps: expected a whole number, got 'few'"),
        ("mp2-deep-bb", "loss=hing", "setting loss: no 'hing'; did you mean 'hinge'"),
        ("mp2-deep-bb", "2.eval_every=0", "setting eval_every: expected at least 1, got 0"),
        ("mp2-deep-bb", "2.calls=19", "one population of 20 calls, got 19"),
    ],
)
def test_a_setting_that_cannot_be_is_told_and_nothing_is_written(
    base: Base, tmp_path: Path, method: str, setting: str, said: str
) -> None:
    result = tune(tmp_path, base, GOOD, "--method", method, "--set", setting)
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
    assert not (tmp_path / "a").exists()


def test_extraction_gives_spans_of_the_users_text(base: Base, tmp_path: Path) -> None:
    rows = "".join(f"我去了北京第{i}次,北京\n上海的咖啡{i}号店很好,上海\n" for i in range(4))
    result = tune(tmp_path, base, "sentence,target\n" + rows, "--json")
    assert result.exit_code == 0, result.output
    text = "😀ＡＢＣ 的 café 很好"
    found = run("predict", tmp_path / "a", text, "--model", base.path, "--json")
    answer = json.loads(found.stdout)
    if answer["span"]:
        assert text[answer["span"]["start"] : answer["span"]["end"]] == answer["answer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        (GOOD.encode("gb18030"), "GB18030"),
        (GOOD.replace("text,label", "words,mood"), "words"),
        (GOOD + "只有一行,怪评\n", "怪评"),
        (GOOD + " ,好评\n", "shots.csv:14: its text is empty"),
        ("text1,text2,label\n早,早,1\n晚,,0\n", "shots.csv:3: its text is empty"),
        (GOOD + ",\n很好,好评\n", "shots.csv:14: its text is empty"),
    ],
    ids=[
        "empty file",
        "wrong encoding",
        "columns without meaning",
        "label with one example",
        "no text",
        "half a pair",
        "a row of commas",
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    base: Base, tmp_path: Path, text: str | bytes, message: str
) -> None:
    result = tune(tmp_path, base, text)
    assert isinstance(result.exception, Mp2Error) and message in str(result.exception)
    assert "shots.csv" in str(result.exception) and not (tmp_path / "a").exists()


def test_labels_that_the_model_cannot_tell_apart_are_told(base: Base, tmp_path: Path) -> None:
    result = tune(tmp_path, base, "text,label\n很好,龘\n不错,龘\n太差,靐\n难看,靐\n")
    assert "the labels '靐' and '龘' are the same tokens" in str(result.exception)
    assert not (tmp_path / "a").exists()


def test_rows_that_cannot_be_answered_name_their_line_and_stay_as_they_are(
    base: Base, tmp_path: Path
) -> None:
    assert tune(tmp_path, base, GOOD).exit_code == 0
    file = tmp_path / "new.csv"
    file.write_text("words\n服务很好\n", encoding="utf-8")
    result = run("predict", tmp_path / "a", "--input", file, "--model", base.path)
    assert "new.csv:2: column 'text' is missing" in str(result.exception)
    file.write_text('text\n"服务\n很好"\n""\n很好\n', encoding="utf-8")
    result = run("predict", tmp_path / "a", "--input", file, "--model", base.path)
    assert isinstance(result.exception, TaskError) and "new.csv:4: its text is empty" in str(result.exception)
    result = run("predict", tmp_path / "a", "很好", " ", "--model", base.path)
    assert isinstance(result.exception, ConfigError) and "text 2 is empty" in str(result.exception)
    file.write_text("text\n服务很好\n", encoding="utf-8")
    result = run("predict", tmp_path / "a", "--input", file, "--output", file, "--model", base.path)
    assert isinstance(result.exception, ConfigError) and "is the file of the rows" in str(result.exception)
    assert file.read_text(encoding="utf-8") == "text\n服务很好\n"


@pytest.mark.parametrize("method", ["mp2-deep-gd-router", "mp2-shallow-gd-router"])
def test_texts_that_are_not_read_to_their_end_are_counted(base: Base, tmp_path: Path, method: str) -> None:
    slots = base.bank("shallow").bank.config.length if "shallow" in method else 0
    task = TaskSpec(name="shots", family="classification", labels=("负面", "正面"))
    texts = [render(task, {"text": "很" * n}, labelled=False) for n in range(300)]
    text = "很" * [row.cut for row in base.encoder(slots)(texts)].index(True)
    result = tune(tmp_path, base, GOOD + f"{text},好评\n", "--method", method)
    assert result.exit_code == 0 and "1 of 13 texts are longer than what is read" in result.stderr
    assert "1 of 1 texts" in run("predict", tmp_path / "a", text, "--model", base.path).stderr
    assert "texts" not in run("predict", tmp_path / "a", text[:-1], "--model", base.path).stderr
    asked = run("predict", tmp_path / "a", "好" * 2000, "太差", "--model", base.path)
    assert "1 of 2 texts are longer" in asked.stderr and len(asked.stdout.splitlines()) == 2


def test_a_name_too_long_for_a_folder_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["predict", "这家店很好" * 60, "送得快"], ["inspect", "这家店很好" * 60]):
        monkeypatch.setattr(sys, "argv", ["mp2", *command])
        with pytest.raises(SystemExit) as ended:
            main.run()
        assert ended.value.code == 2 and "File name too long" in capsys.readouterr().err


def test_a_search_within_the_folder_of_the_adapter_is_refused_at_once(base: Base, tmp_path: Path) -> None:
    for options in ((), ("--replace",)):
        result = tune(tmp_path, base, GOOD, "--search", str(tmp_path / "a" / "search"), *options)
        assert isinstance(result.exception, ConfigError) and "lies in --out" in str(result.exception)
        assert not (tmp_path / "a").exists()


def test_a_text_too_long_to_be_read_names_its_line(base: Base, tmp_path: Path) -> None:
    rows = "sentence,target\n我去了北京,北京\n他在上海,上海\n她去广州,广州\n"
    assert tune(tmp_path, base, rows).exit_code == 0
    file = tmp_path / "new.csv"
    file.write_text(f'sentence\n"去\n了北京"\n{"很" * 9000}\n', encoding="utf-8")
    result = run("predict", tmp_path / "a", "--input", file, "--output", tmp_path / "o", "--model", base.path)
    assert isinstance(result.exception, TaskError) and not (tmp_path / "o").exists()
    assert re.search(r"new\.csv:4: the text needs \d+ windows", str(result.exception))


def test_an_unknown_label_names_file_line_and_the_nearest(base: Base, tmp_path: Path) -> None:
    task = tmp_path / "moods.yaml"
    task.write_text("name: moods\nfamily: classification\nlabels: [正面, 负面]\n", encoding="utf-8")
    result = tune(tmp_path, base, "text,label\n很好,正面\n太差,负面评\n", "--task", str(task))
    assert "shots.csv:3: unknown label '负面评'" in str(result.exception)
    assert "did you mean '负面'" in str(result.exception)


def test_an_answer_that_is_not_in_its_context_names_the_line(base: Base, tmp_path: Path) -> None:
    result = tune(tmp_path, base, "sentence,target\n我去了北京,北京\n我去了北京,上海\n")
    assert "shots.csv:3: the answer '上海' does not occur in the context" in str(result.exception)


def test_nan_and_lists_where_text_belongs_are_told(base: Base, tmp_path: Path) -> None:
    for value in ("NaN", '["a"]', "null"):
        file = tmp_path / "rows.jsonl"
        good = '{"text": "很好", "label": "好评"}\n{"text": "太差", "label": "差评"}\n'
        file.write_text(good * 2 + f'{{"text": {value}, "label": "好评"}}\n', encoding="utf-8")
        result = run("tune", file, "--out", tmp_path / "a", "--model", base.path)
        assert isinstance(result.exception, Mp2Error), value
        assert "rows.jsonl:5" in str(result.exception) and not (tmp_path / "a").exists()


def test_options_longer_than_the_window_are_told(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"document": f"文{i}", "question": "问", "options": ["长" * 400, "二"], "label": 0} for i in range(4)
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    result = run("tune", file, "--out", tmp_path / "a", "--model", base.path)
    assert isinstance(result.exception, Mp2Error) and "window of 128" in str(result.exception)


def test_an_output_folder_that_exists_is_left_alone(base: Base, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("keep")
    result = tune(tmp_path, base, GOOD)
    assert "exists already" in str(result.exception)
    assert (tmp_path / "a" / "mine.txt").read_text() == "keep"


def test_user_errors_exit_with_2_and_no_traceback(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "mp2.cli.main", "predict", str(tmp_path / "none"), "text"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no such adapter folder" in done.stderr
