"""What labels lack: fitted to a few rows, kept by the adapter, added wherever options are scored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mp2.data.batch import collate
from mp2.errors import CheckpointError, ConfigError
from mp2.model.checkpoint import Base
from mp2.model.label_offsets import SPREAD, label_offsets
from mp2.model.spans import option_log_probs, option_scores, row_losses
from mp2.serving.predictor import Predictor
from mp2.tuning.adapter import compose, labelled_offsets, load_adapter
from mp2.tuning.methods import get_method
from mp2.tuning.tune import tune
from tests.model.test_spans import RAGGED
from tests.tuning.shots import BAD, GOOD, review_rows, review_task, span_rows, span_task

UNTUNED = "zero-shot-base"


def test_the_gradient_of_the_posterior_vanishes_at_them() -> None:
    scores = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0.0, -1.0])
    labels = torch.arange(40) % 3
    offsets = torch.tensor(label_offsets(scores.log_softmax(1), labels))
    given = (scores.log_softmax(1) + offsets).softmax(1).sum(0)
    told = torch.bincount(labels)
    torch.testing.assert_close(given + offsets / SPREAD**2, told.float(), atol=1e-2, rtol=1e-3)
    assert offsets[0] < offsets[1] < offsets[2]


def test_a_model_that_prefers_a_label_is_corrected_and_one_row_cannot_forbid_the_others() -> None:
    scores = torch.tensor([[3.0, 0.0], [5.0, 0.0], [4.0, 1.9], [3.5, 2.0]]).log_softmax(1)
    labels = torch.tensor([0, 0, 1, 1])
    assert (scores.argmax(1) == 0).all()
    assert ((scores + torch.tensor(label_offsets(scores, labels))).argmax(1) == labels).all()
    one = label_offsets(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
    assert one[0] == pytest.approx(-one[1]) and 0 < one[0] < SPREAD


def test_they_are_added_to_the_options_of_their_own_task_and_to_no_span() -> None:
    batch, plain = collate(RAGGED, [0, 1, 0, 1], offsets=[(), (0.5, -1.5)]), collate(RAGGED)
    logits = torch.randn(*batch.ids.shape, 2, generator=torch.Generator().manual_seed(0))
    added = option_scores(logits, batch) - option_scores(logits, plain)
    expected = torch.where(batch.option_row == 1, torch.tensor([0.5, -1.5])[batch.option_index % 2], 0.0)
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)
    shares = option_log_probs(logits, batch)[1]
    moved = option_log_probs(logits, plain)[1] + torch.tensor([0.5, -1.5])
    torch.testing.assert_close(shares, moved.log_softmax(0))
    losses, _ = row_losses(logits, batch, "option")
    assert losses[1].item() == pytest.approx(-shares[0].item(), abs=1e-5)
    torch.testing.assert_close(losses[[0, 2, 3]], row_losses(logits, plain, "option")[0][[0, 2, 3]])


def test_an_adapter_keeps_them_and_its_dev_score_is_with_them(base: Base, tmp_path: Path) -> None:
    task = review_task()
    train, dev = review_rows(task)
    assert tune(base, task, train, dev, get_method(UNTUNED)).label_offsets == ()
    adapter = tune(base, task, train, dev, get_method(UNTUNED), calibrate=True)
    assert len(adapter.label_offsets) == 2 and any(adapter.label_offsets)
    adapter.save(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter")
    assert loaded.label_offsets == adapter.label_offsets == compose(adapter, base).label_offsets
    assert labelled_offsets(loaded) == dict(zip(task.labels, adapter.label_offsets, strict=True))

    predictor = Predictor(base)
    predictor.add("with", loaded)
    adapter.label_offsets = ()
    predictor.add("without", adapter)
    (one,), (other,) = (predictor.predict([(name, "音乐很好")]) for name in ("with", "without"))
    both = predictor.predict([("without", "音乐很好"), ("with", "音乐很好")])
    moved = torch.tensor(other.answer.options).log() + torch.tensor(loaded.label_offsets)
    assert one.answer.options == pytest.approx(moved.softmax(0).tolist(), abs=1e-5)
    for alone, beside in ((other, both[0]), (one, both[1])):
        assert alone.answer.options == pytest.approx(beside.answer.options, abs=1e-5)


def test_reworded_labels_keep_their_numbers_and_moved_ones_are_refused(base: Base, tmp_path: Path) -> None:
    task = review_task()
    train, dev = review_rows(task)
    adapter = tune(base, task, train, dev, get_method(UNTUNED), calibrate=True)
    first, second = task.labels
    for labels in ((second, first), (first, "不满"), ("满意", "不满")):
        renamed = task.model_copy(update={"labels": labels})
        replace(adapter, task=renamed).save(tmp_path / "a", replace=True)
        facts = json.loads((tmp_path / "a" / "adapter.json").read_text("utf-8"))
        facts["label_offsets"] = dict(zip(task.labels, adapter.label_offsets, strict=True))
        (tmp_path / "a" / "adapter.json").write_text(json.dumps(facts), "utf-8")
        expected = adapter.label_offsets[:: -1 if labels[0] == second else 1]
        assert load_adapter(tmp_path / "a").label_offsets == expected
    facts["label_offsets"] = dict(zip((second, "满意"), adapter.label_offsets, strict=True))
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(facts), "utf-8")
    with pytest.raises(CheckpointError, match="label_offsets: expected a number for each of"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("name", ["mp2-deep-gd", "mp2-deep-bb-router", "mp2-shallow-gd-router", "lora"])
def test_what_is_tuned_after_them_is_scored_with_them(base: Base, name: str) -> None:
    task = review_task()
    train, dev = review_rows(task)
    adapter = tune(base, task, train, dev, get_method(name), calibrate=True)
    predictor = Predictor(base)
    predictor.add("task", adapter)
    texts = [*GOOD[4:], *BAD[4:]]
    found = [p.answer.text for p in predictor.predict([("task", text) for text in texts])]
    right = [one == example.gold_texts[0] for one, example in zip(found, dev, strict=True)]
    assert sum(right) / len(right) == pytest.approx(adapter.facts["dev"])
    plain = tune(base, task, train, dev, get_method(name))
    assert adapter.facts["curve"][0]["dev_loss"] != plain.facts["curve"][0]["dev_loss"]


def test_spans_and_classifiers_are_refused(base: Base) -> None:
    spans = span_task()
    rows = span_rows(spans)
    with pytest.raises(ConfigError, match="no fixed labels"):
        tune(base, spans, rows[:2], rows[2:], get_method(UNTUNED), calibrate=True)
    labels = review_task()
    with pytest.raises(ConfigError, match="linear-probing: its classifier prefers no label"):
        tune(base, labels, *review_rows(labels), get_method("linear-probing"), calibrate=True)


@pytest.mark.parametrize(
    "value",
    [
        3,
        [0.5, 0.5],
        {"好": 1.0},
        {"好": 1.0, "坏": 1.0},
        {"好": True, "差": 1.0},
        {"好": math.nan, "差": 1.0},
    ],
)
def test_damaged_ones_are_told_and_an_adapter_of_before_has_none(
    base: Base, tmp_path: Path, value: object
) -> None:
    task = review_task()
    tune(base, task, *review_rows(task), get_method(UNTUNED), calibrate=True).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(facts | {"label_offsets": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="label_offsets: expected a number for each of 差，好, got"):
        load_adapter(tmp_path / "adapter")
    del facts["label_offsets"]
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert load_adapter(tmp_path / "adapter").label_offsets == ()
