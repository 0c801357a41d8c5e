"""Tuning a micro base: only named groups move, results repeat, adapters come back the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import ElectraConfig, ElectraModel

from mp2.errors import CheckpointError, ConfigError, WriteError
from mp2.model.checkpoint import Base, save_encoder
from mp2.model.router import Routing
from mp2.runtime import Precision
from mp2.serving.predictor import Predictor
from mp2.tasks.render import MRCExample, render
from mp2.tasks.spec import TaskSpec
from mp2.tuning import course
from mp2.tuning.adapter import load_adapter
from mp2.tuning.methods import get_method
from mp2.tuning.stages import Gradient
from mp2.tuning.state import TaskState
from mp2.tuning.tune import encode_shots, tune
from tests.micro import HIDDEN, micro_base, micro_tokenizer

TASK = TaskSpec(name="moods", family="classification", labels=("正面", "负面"))
QUICK = replace(
    get_method("mp2-deep-gd"),
    stages=(
        Gradient({"router": 0.3}, steps=4, eval_every=2),
        Gradient({"prompts": 0.1, "head": 0.1}, steps=30, eval_every=5),
    ),
)


PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
NAMES = ("味道", "服务", "店", "音乐", "手机", "咖啡", "地方", "电话", "老师", "公司", "北京")


def rows(count: int, start: int = 0) -> list[MRCExample]:
    """Rows that their last words decide."""
    words = ("很好喜欢", "太差难看")
    return [
        render(TASK, {"text": f"{NAMES[i % len(NAMES)]}{words[i % 2]}。", "label": TASK.labels[i % 2]})
        for i in range(start, start + count)
    ]


def _weights(base: Base) -> dict[str, torch.Tensor]:
    found = {f"backbone.{k}": v.clone() for k, v in base.backbone.state_dict().items()}
    for name in base.banks:
        bank = base.bank(name)
        found |= {f"{name}.{k}": v.clone() for k, v in bank.bank.state_dict().items()}
        found |= {f"{name}.head.{k}": v.clone() for k, v in bank.head.state_dict().items()}
        found[f"{name}.router"] = bank.router.clone()
    return found


@pytest.mark.parametrize(
    ("method", "stage", "moved"),
    [
        ("mp2-deep-gd", 0, {"router"}),
        ("mp2-deep-gd", 1, {"prompts", "head"}),
        ("mp2-shallow-gd", 0, {"router"}),
        ("spot", 0, {"prompts", "head"}),
        ("model-tuning", 0, {"backbone", "head"}),
    ],
)
def test_only_the_named_groups_move_in_a_stage(base: Base, method: str, stage: int, moved: set[str]) -> None:
    from mp2.tuning.course import Course
    from mp2.tuning.gradient import run_gradient

    row = get_method(method)
    state = TaskState(base, row, 0)
    before, kept = state.snapshot(("backbone", "head", "prompts", "router")), _weights(base)
    chosen = replace(row.stages[stage], steps=2, eval_every=0)  # type: ignore[type-var]
    reserve = state.bank.config.length if state.bank and state.injection == "add" else 0
    shots = encode_shots(base, rows(8), reserve)
    assert isinstance(chosen, Gradient)
    run_gradient(Course(state, TASK, shots, shots, seed=0), chosen, stage)
    after = state.snapshot(("backbone", "head", "prompts", "router"))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == moved
    assert all(torch.equal(value, kept[key]) for key, value in _weights(base).items())


def test_two_stages_lower_the_loss_and_the_adapter_answers_the_same_after_loading(
    base: Base, tmp_path: Path
) -> None:
    adapter = tune(base, TASK, rows(16), rows(8, 100), QUICK, seed=3)
    losses = [record["loss"] for record in adapter.facts["curve"] if "loss" in record]
    assert losses[-1] < losses[0] / 2
    adapter.save(tmp_path / "a")
    predictor = Predictor(base)
    predictor.add("memory", adapter)
    predictor.add("disk", tmp_path / "a")
    text = "音乐太差难看。"
    (first,), (second,) = predictor.predict([("memory", text)]), predictor.predict([("disk", text)])
    assert first.answer == second.answer and first.answer.text in TASK.labels


@pytest.mark.parametrize("name", ["model-tuning", "lora", "mp2-deep-gd", "mp2-shallow-gd"])
def test_bf16_products_are_of_the_weights_of_their_step(base: Base, name: str) -> None:
    row = get_method(name)
    # all weights at the rate of the others are chaotic after a few steps: roundings grow
    lr = 0.005 if name == "model-tuning" else 0.02
    stages = [Gradient(dict.fromkeys(stage.groups, lr), steps=12, eval_every=3) for stage in row.stages]
    curves = []
    for precision in PRECISIONS:
        method = replace(row, stages=tuple(stages))
        adapter = tune(base, TASK, rows(16), rows(8, 100), method, seed=3, precision=precision)
        assert {value.dtype for value in adapter.tensors.values()} == {torch.float32}
        curves.append([record["loss"] for record in adapter.facts["curve"] if "loss" in record])
        if "prompts" in adapter.tensors:  # nor were they rounded on the way
            assert not torch.equal(adapter.tensors["prompts"], adapter.tensors["prompts"].bfloat16().float())
    whole, half = curves
    assert half != whole and half == pytest.approx(whole, abs=0.08)
    assert whole[-1] < 0.8 * whole[0]


def test_the_loss_of_a_step_is_that_of_all_its_rows(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = []
    for tokens in (4096, 40):  # one batch, and several
        monkeypatch.setattr(course, "CPU_TOKENS", tokens)
        adapter = tune(
            base,
            TASK,
            [*rows(6), render(TASK, {"text": "很好喜欢" * 8, "label": "负面"})],
            rows(8, 50),
            QUICK,
        )
        curves.append([point["loss"] for point in adapter.facts["curve"] if "loss" in point])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_rows_without_an_answer_are_refused(base: Base) -> None:
    unknown = [*rows(3), render(TASK, {"text": "不知道"}, labelled=False)]
    with pytest.raises(ConfigError, match=r"row 4 of the train set has no answer \(1 of 4"):
        tune(base, TASK, unknown, rows(8), QUICK)


def test_the_same_seed_gives_the_same_adapter(base: Base) -> None:
    first, second = (tune(base, TASK, rows(8), rows(8, 50), QUICK, seed=5) for _ in range(2))
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(value, second.tensors[key]) for key, value in first.tensors.items())


@pytest.mark.parametrize("combine", ["normalised", "mean"])
def test_a_bank_of_hard_gates_is_tuned_like_any_other(
    base: Base, monkeypatch: pytest.MonkeyPatch, combine: str
) -> None:
    monkeypatch.setattr(base.bank("deep"), "routing", Routing("hard", combine))  # type: ignore[arg-type]
    adapter = tune(base, TASK, rows(8), rows(8, 50), QUICK, seed=5)
    stages = [point["stage"] for point in adapter.facts["curve"]]
    assert stages[0] == -1 and {0, 1} <= set(stages)
    losses = [point["loss"] for point in adapter.facts["curve"] if point["stage"] == 1]
    assert losses[-1] < losses[0]


def test_a_router_only_adapter_is_a_few_numbers(base: Base, tmp_path: Path) -> None:
    adapter = tune(base, TASK, rows(8), rows(8, 50), QUICK.router_only(), seed=5)
    assert set(adapter.tensors) == {"router"}
    assert adapter.tensors["router"].shape == (3, 3) and adapter.facts["tuned_parameters"] == 9
    adapter.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 400


def test_an_adapter_of_another_base_is_refused_with_both_names(base: Base, tmp_path: Path) -> None:
    adapter = tune(base, TASK, rows(4), rows(4, 50), QUICK.router_only())
    other = micro_base(tmp_path / "other", layers=2)
    predictor = Predictor(other)
    with pytest.raises(CheckpointError, match=rf"belongs to base micro \({base.fingerprint}\), not to micro"):
        predictor.add("x", adapter)
        predictor.predict([("x", "服务很好")])


def test_a_damaged_adapter_is_told_and_an_existing_folder_is_not_overwritten(
    base: Base, tmp_path: Path
) -> None:
    adapter = tune(base, TASK, rows(4), rows(4, 50), QUICK.router_only())
    adapter.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="exists already"):
        adapter.save(tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    shutil.copytree(tmp_path / "a", tmp_path / "whole")
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors: truncated or damaged"):
        load_adapter(tmp_path / "a")


def test_a_full_disk_leaves_the_old_adapter(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tune(base, TASK, rows(4), rows(4, 50), QUICK.router_only())
    adapter.save(tmp_path / "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mp2.tuning.adapter.save_file", full)
    with pytest.raises(WriteError, match="No space left on device"):
        adapter.save(tmp_path / "a", replace=True)
    assert load_adapter(tmp_path / "a").method == adapter.method
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_an_adapter_is_replaced_by_an_adapter(base: Base, tmp_path: Path) -> None:
    adapter = tune(base, TASK, rows(4), rows(4, 50), QUICK.router_only())
    adapter.save(tmp_path / "many" / "a")
    with pytest.raises(CheckpointError, match=r"not replaced: expected a folder with a file adapter\.json"):
        adapter.save(tmp_path / "many", replace=True)
    assert load_adapter(tmp_path / "many" / "a").method == adapter.method


def test_an_empty_train_set_is_an_error(base: Base) -> None:
    with pytest.raises(ConfigError, match="the train set is empty"):
        tune(base, TASK, [], rows(4), QUICK)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mp2-deep-gd'"):
        get_method("mp2-deep-dg")


def test_prompts_of_words_are_as_wide_as_the_layers(tmp_path: Path) -> None:
    """ELECTRA-small's words are narrower, and are projected."""
    tokenizer = micro_tokenizer(tmp_path)
    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=HIDDEN, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64,
    )  # fmt: skip
    save_encoder(tmp_path, ElectraModel(config), tokenizer)
    base = Base(tmp_path)
    prompts = TaskState(base, get_method("prompt-tuning"), 1).prompts()
    assert prompts is not None and prompts.shape == (1, 1, 16, HIDDEN)
    words = base.backbone.words()
    assert all((words == vector).all(dim=1).any() for vector in prompts[0, 0])
