"""The benchmarks run and say what they promise: small encoders, one round, no number is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.micro import micro_base

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import their neighbours by name, as Python lets them when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_speed_ends_with_the_promised_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import speed

    monkeypatch.setattr(speed, "FEW", ("chip-sts", "cote-mfw"))  # one with options, one without
    monkeypatch.setattr(speed, "QUICK_LIMIT", 1e9)  # rivals take part however busy the machine is
    monkeypatch.setattr(speed, "QUICK_STOP", 1e9)
    monkeypatch.setitem(speed.SIZES, "smaller", speed.SIZES["micro"])
    speed.main(["--quick", "--json", "--rounds", "1", "--rows", "8", "--size", "micro", "--size", "smaller"])
    found = last_line(capsys)
    peft = {"vs_peft_prefix", "vs_peft_prompt"}
    promised = {
        "pretrain_step": {"vs_released", "vs_bare", "span_vs_released", "span_vs_bare"},
        "fewshot_step": {"vs_released", "vs_bare"} | peft,
        "evaluation": {"vs_released", "vs_bare"} | peft,
        "mixed_tasks": {"vs_single_task"},
        "blackbox": {"vs_released", "vs_bare"},
    }
    measured = found.pop("measured")
    assert found.keys() == {*promised, "smaller"}
    assert found["smaller"].keys() == {"pretrain_step", "evaluation", "mixed_tasks"}
    for cell, keys in promised.items():
        plain = {key for key in found[cell] if "bf16" not in key}  # the rest where the processor knows it
        assert plain == keys
        assert all(isinstance(ratio, float) and ratio > 0 for ratio in found[cell].values())
        facts = measured["micro"][cell]
        assert facts["ranges"].keys() == found[cell].keys()
        assert all(low <= high for low, high in facts["ranges"].values())
        assert all(("of_rate" in way) is (cell != "blackbox") for way in facts["ways"].values())


def test_black_box_ends_with_the_promised_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import black_box

    micro_base(tmp_path / "base", layers=2, positions=512)
    for name in ("stage_one", "stage_two"):
        stage = getattr(black_box, name)
        monkeypatch.setattr(black_box, name, lambda *run, stage=stage: stage(*run[:2], 0.0))
    monkeypatch.setattr(black_box, "POPULATION", 2)
    monkeypatch.setattr("sys.argv", ["black_box.py", "--quick", "--json", "--model", str(tmp_path / "base")])
    black_box.main()
    found = last_line(capsys)
    assert found.keys() == {"shallow", "deep"}
    for numbers in found.values():
        assert numbers.keys() == {"speedup", "max_loss_difference"}
        assert numbers["speedup"] > 0
        assert numbers["max_loss_difference"] < 1e-3


@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_that_the_bare_encoder_takes(tmp_path: Path, backward: bool) -> None:
    from bench import Bench
    from workload import SIZES, Shape, flops_of, random_base

    bench = Bench("micro", random_base(tmp_path / "base", SIZES["micro"]))
    bench.bare.set_attn_implementation("eager")  # a fused kernel's products are not seen
    rows = Shape("invented", 2, 1, (20, 20)).rows([20] * 3, np.random.default_rng(0), 100)
    with FlopCounterMode(display=False) as counter:
        bench.bare_pass(3, 60, backward=backward)
    assert counter.get_total_flops() == flops_of(SIZES["micro"], rows, backward=backward)


def test_a_row_with_fewer_options_repeats_its_first() -> None:
    from workload import Shape, option_spans

    shape = Shape("invented", 4, 1, (8, 30))
    few, many = shape.rows([8, 30], np.random.default_rng(0), 100)
    spans = option_spans([few, many])
    count = few.n_options
    assert spans.shape == (2, 4, 2)
    assert torch.equal(spans[0, count:], spans[0, :1].expand(4 - count, 2))
    assert [tuple(span) for span in spans[1].tolist()] == [tuple(s[1:]) for s in many.windows[0].options]
