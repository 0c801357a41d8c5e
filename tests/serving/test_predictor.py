from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mp2.errors import CheckpointError, Mp2Error, TaskError
from mp2.model.checkpoint import Base
from mp2.serving.predictor import Prediction, Predictor
from mp2.tuning.adapter import compose
from tests.micro import HIDDEN
from tests.serving.kit import PAIRS, REVIEWS, ROWS, TARGETS, adapter, folder

KINDS = ("router", "prompts", "shallow", "head", "backbone")


def close(one: Prediction, other: Prediction) -> None:
    assert one.answer.text == other.answer.text
    assert one.answer.span == other.answer.span
    assert one.answer.probability == pytest.approx(other.answer.probability, abs=1e-5)
    assert one.answer.options == pytest.approx(other.answer.options, abs=1e-5)


def test_a_mixed_batch_answers_each_row_as_its_task_alone_does(base: Base) -> None:
    predictor = Predictor(base)
    rows = []
    for number, (task, kind) in enumerate((t, k) for t in (REVIEWS, PAIRS, TARGETS) for k in KINDS):
        predictor.add(f"{task.name}-{kind}", adapter(base, task, number, kind))
        rows += [(f"{task.name}-{kind}", row) for row in ROWS[task.family]]
    for number, task in enumerate((REVIEWS, PAIRS)):
        predictor.add(f"{task.name}-probe", adapter(base, task, 50 + number, "probe"))
        rows += [(f"{task.name}-probe", row) for row in ROWS[task.family]]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = predictor.predict([rows[i] for i in order])
    answers = set()
    for i, found in zip(order, mixed, strict=True):
        alone = Predictor(base)
        alone.add(rows[i][0], predictor._sources[rows[i][0]])
        close(found, alone.predict([rows[i]])[0])
        answers.add((rows[i][0], found.answer.text, round(found.answer.probability, 4)))
    assert len(answers) > len(rows) // 2  # the adapters do differ


@pytest.mark.parametrize("kind", ["router", "shallow"])
def test_prompts_mixed_in_the_batch_are_the_composed_ones(base: Base, kind: str) -> None:
    """Router rows of many tasks, mixed in one product, against each task's prompts composed by itself."""
    mixed, composed, rows = Predictor(base), Predictor(base), []
    for number in range(5):
        made = adapter(base, REVIEWS, number, kind)
        mixed.add(f"t{number}", made)
        prompts = compose(made, base).prompts
        assert prompts is not None
        composed.add(f"t{number}", replace(made, tensors={"prompts": prompts}))
        rows += [(f"t{number}", text) for text in ROWS["classification"]]
    expected = composed.predict(rows)
    for one, other in zip(mixed.predict(rows), expected, strict=True):
        close(one, other)
    assert mixed.held.bytes < composed.held.bytes  # a task of weights keeps no prompts
    mixed.add("own", adapter(base, REVIEWS, 9, "prompts"))  # its prompts are projected, not mixed
    for one, other in zip(mixed.predict([("own", "好"), *rows])[1:], expected, strict=True):
        close(one, other)


def test_a_small_token_budget_changes_no_answer(base: Base, tmp_path: Path) -> None:
    folder(base, tmp_path)
    rows = [("reviews", row) for row in ROWS["classification"]] + [("targets", r) for r in ROWS["extraction"]]
    wide, narrow = Predictor(base, folder=tmp_path), Predictor(base, folder=tmp_path, tokens=64)
    for one, other in zip(wide.predict(rows), narrow.predict(rows), strict=True):
        close(one, other)


def test_the_least_recently_used_adapter_leaves_when_memory_is_short(base: Base) -> None:
    predictor = Predictor(base)
    for number in range(6):
        predictor.add(f"t{number}", adapter(base, REVIEWS, number))
    predictor.predict([("t0", "好")])
    one = predictor.held.bytes
    assert one > 0
    predictor.memory = 3 * one
    before = predictor.predict([(f"t{n}", "味道很好") for n in range(6)])
    assert predictor.held.adapters == 3 and predictor.held.bytes == 3 * one
    predictor.predict([("t3", "好"), ("t0", "好")])  # t3 stays because it was asked for
    assert set(predictor._held) == {"t5", "t3", "t0"}
    for number, old in enumerate(before):
        close(old, predictor.predict([(f"t{number}", "味道很好")])[0])
    predictor.remove("t5")
    assert not predictor.knows("t5")


def test_a_replaced_adapter_is_noticed(base: Base, tmp_path: Path) -> None:
    adapter(base, REVIEWS, 1).save(tmp_path / "task")
    predictor = Predictor(base, folder=tmp_path)
    first = predictor.predict([("task", "味道很好")])[0]
    adapter(base, REVIEWS, 5, "prompts").save(tmp_path / "task", replace=True)
    second = predictor.predict([("task", "味道很好")])[0]
    assert first.answer.options != second.answer.options
    assert predictor.held.adapters == 1


def damage(path: Path, how: str) -> None:
    file = path / "adapter.safetensors"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "not-json":
        (path / "adapter.json").write_text("{", encoding="utf-8")
    elif how == "json-list":
        (path / "adapter.json").write_text("[1]", encoding="utf-8")
    elif how == "no-task":
        (path / "task.yaml").unlink()
    else:
        facts = json.loads((path / "adapter.json").read_text(encoding="utf-8"))
        facts["injection" if how == "injection" else "base_fingerprint"] = "nonsense"
        (path / "adapter.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize("how", ["cut", "not-json", "json-list", "no-task", "injection", "other-base"])
def test_a_damaged_adapter_hurts_its_own_rows_only(base: Base, tmp_path: Path, how: str) -> None:
    folder(base, tmp_path)
    damage(tmp_path / "pairs", how)
    predictor = Predictor(base, folder=tmp_path)
    found = predictor.answer([("reviews", "很好"), ("pairs", ROWS["pair"][0]), ("targets", "上海的店")])
    assert isinstance(found[1], CheckpointError)
    assert "pairs" in str(found[1]) and str(tmp_path) not in str(found[1])
    assert isinstance(found[0], Prediction) and isinstance(found[2], Prediction)


@pytest.mark.parametrize("bad", ["nan", "shape", "router", "integers", "head", "probe"])
def test_tensors_that_no_forward_can_use_are_refused(base: Base, bad: str) -> None:
    made = adapter(base, REVIEWS, 1, "router" if bad == "router" else "prompts")
    name, value = {
        "nan": ("prompts", torch.full((3, 4, 32), float("nan"))),
        "shape": ("prompts", torch.zeros(2, 4, 32)),
        "router": ("router", torch.zeros(7, 7)),
        "integers": ("prompts", torch.zeros(3, 4, 32, dtype=torch.long)),
        "head": ("head.weight", torch.zeros(5, 5)),
        "probe": ("probe.weight", torch.zeros(2, 32)),
    }[bad]
    made.tensors[name] = value
    if bad == "probe":
        made.tensors["probe.bias"] = torch.zeros(2)
    predictor = Predictor(base)
    predictor.add("bad", made)
    predictor.add("good", adapter(base, REVIEWS, 2))
    found = predictor.answer([("bad", "好"), ("good", "好")])
    assert isinstance(found[0], Mp2Error) and isinstance(found[1], Prediction)


def test_a_row_that_does_not_fit_leaves_the_others_their_answers(base: Base, tmp_path: Path) -> None:
    folder(base, tmp_path)
    predictor = Predictor(base, folder=tmp_path)
    number = {"text1": "好", "text2": 5, "other": 1}
    found = predictor.answer(
        [
            ("reviews", "好"),
            ("reviews", {"wrong": "好"}),
            ("pairs", "一句话"),
            ("pairs", number),
            ("none", "好"),
        ]
    )
    assert [type(item) for item in found] == [Prediction, TaskError, TaskError, Prediction, CheckpointError]
    assert str(found[1]).startswith("task 'reviews': column 'text' is missing")  # no place in a shared batch
    with pytest.raises(TaskError, match="row 2: task 'reviews': column 'text'"):
        predictor.predict([("reviews", "好"), ("reviews", {"wrong": "好"})])


def test_an_empty_text_has_no_span_and_no_label(base: Base) -> None:
    predictor = Predictor(base)
    predictor.add("targets", adapter(base, TARGETS, 1))
    for name, task in (("reviews", REVIEWS), ("pairs", PAIRS)):
        predictor.add(name, adapter(base, task, 2))
    half = dict.fromkeys(PAIRS.template_fields, "好") | {PAIRS.template_fields[0]: " "}
    refused = predictor.answer([("reviews", " "), ("pairs", half), ("reviews", "好")])
    assert [type(answer) for answer in refused] == [TaskError, TaskError, Prediction]
    assert "the text is empty" in str(refused[0])
    for rows in ([("targets", "")], [("targets", ""), ("targets", "上海的店"), ("reviews", "好")]):
        found = predictor.predict(rows)
        assert (found[0].answer.text, found[0].answer.span, found[0].answer.probability) == ("", None, 0.0)


def test_options_that_leave_no_room_fail_alone(base: Base) -> None:
    choice = REVIEWS.model_validate({"name": "choice", "family": "choice"})
    predictor = Predictor(base)
    predictor.add("choice", adapter(base, choice, 1))
    good = {"document": "他喜欢猫", "question": "他喜欢什么", "options": ["猫", "狗"]}
    found = predictor.answer([("choice", good), ("choice", {**good, "options": ["猫" * 300, "狗"]})])
    assert isinstance(found[0], Prediction) and isinstance(found[1], TaskError)
    with pytest.raises(TaskError, match="row 1: the option"):
        predictor.predict([("choice", {**good, "options": ["猫" * 300, "狗"]})])


def test_predictions_as_json(base: Base, tmp_path: Path) -> None:
    folder(base, tmp_path)
    label, span = Predictor(base, folder=tmp_path).predict([("reviews", "好"), ("targets", "上海的店")])
    assert set(label.as_dict()) == {"label", "index", "probability", "scores"}
    assert sum(label.as_dict()["scores"].values()) == pytest.approx(1, abs=1e-4)
    found = span.as_dict()
    assert "上海的店"[found["span"]["start"] : found["span"]["end"]] == found["answer"]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"probe.weight": torch.ones(4)}, "not an adapter this version can read"),
        ({"head.weight": torch.full((2, HIDDEN), 3e38)}, "its answers are no finite numbers"),
    ],
)
def test_a_damaged_adapter_costs_its_own_rows_alone(
    base: Base, tensors: dict[str, torch.Tensor], told: str
) -> None:
    predictor = Predictor(base)
    predictor.add("good", adapter(base, REVIEWS, 1))
    made = adapter(base, REVIEWS, 2, "head")
    predictor.add("bad", replace(made, tensors=made.tensors | tensors))
    bad, good = predictor.answer([("bad", "味道很好"), ("good", "味道很好")])
    assert isinstance(good, Prediction)
    assert isinstance(bad, CheckpointError) and told in str(bad)
