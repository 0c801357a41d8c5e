"""How long answers are: learned from the rows of a task, kept by its adapter, used where spans compete."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mp2.data.encode import Encoded, Window
from mp2.errors import CheckpointError
from mp2.model.answer_length import AnswerLength, answer_length
from mp2.model.checkpoint import Base
from mp2.tuning.adapter import compose, load_adapter
from mp2.tuning.methods import get_method
from mp2.tuning.tune import tune
from tests.tuning.shots import review_rows, review_task, span_rows, span_task


def _row(*golds: tuple[int, int] | None) -> Encoded:
    return Encoded(tuple(Window([2] * 12, context=(3, 11), no_answer=(1, 2), gold=gold) for gold in golds))


def test_it_is_the_mean_and_spread_of_log_tokens_with_one_imagined_answer() -> None:
    found = answer_length([_row((3, 3)), _row(None, (4, 7)), _row((3, 6), (5, 8))])
    logs = [0.0, math.log(4), math.log(4)]  # a row of two windows with the answer counts once
    mean = sum(logs) / 3
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(math.sqrt((sum((x - mean) ** 2 for x in logs) + 1) / 4))


def test_a_single_row_still_lets_other_lengths_pass() -> None:
    found = answer_length([_row((3, 6))])
    assert found is not None and found.deviation == pytest.approx(math.sqrt(0.5))


def test_options_and_rows_without_an_answer_have_no_length() -> None:
    options = Encoded((Window([2] * 9, options=[(0, 3, 3), (1, 5, 6)], gold=(5, 6)),), 2, 1)
    assert answer_length([options, _row((1, 2)), _row(None)]) is None


def test_log_shares_are_a_normal_density_of_log_tokens_up_to_a_constant() -> None:
    shares = AnswerLength(1.0, 0.5).log_shares(6)
    normal = torch.distributions.Normal(1.0, 0.5)
    expected = normal.log_prob(torch.arange(1, 7).log()) - normal.log_prob(torch.tensor(1.0))
    torch.testing.assert_close(shares, expected)


def test_an_adapter_keeps_it(base: Base, tmp_path: Path) -> None:
    method = get_method("zero-shot-base")
    task = span_task()
    rows = span_rows(task)
    adapter = tune(base, task, rows[:2], rows[2:], method)
    assert adapter.answer_length is not None
    adapter.save(tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter").answer_length == adapter.answer_length
    assert compose(adapter, base).answer_length == adapter.answer_length
    labels = review_task()
    assert tune(base, labels, *review_rows(labels), method).answer_length is None


@pytest.mark.parametrize(
    "value", [3, {}, {"mean": 1.0, "deviation": 0.0}, {"mean": math.nan, "deviation": 1.0}]
)
def test_a_damaged_one_is_told_and_an_adapter_of_before_has_none(
    base: Base, tmp_path: Path, value: object
) -> None:
    task = span_task()
    rows = span_rows(task)
    tune(base, task, rows[:2], rows[2:], get_method("zero-shot-base")).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(facts | {"answer_length": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"answer_length: expected a mean and a deviation above 0, got"):
        load_adapter(tmp_path / "adapter")
    del facts["answer_length"]
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert load_adapter(tmp_path / "adapter").answer_length is None
