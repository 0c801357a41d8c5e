"""Vectors of label words: added at their own words, of their own task, nowhere else; kept by the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mp2.data.batch import collate
from mp2.errors import CheckpointError
from mp2.model.backbone import Prompts
from mp2.model.checkpoint import Base
from mp2.model.label_vectors import added_states, stack
from mp2.model.mrc import MRCModel
from mp2.serving.predictor import Predictor
from mp2.tuning.adapter import compose, load_adapter
from mp2.tuning.methods import get_method
from mp2.tuning.tune import tune
from tests.micro import HIDDEN, LAYERS, LENGTH
from tests.model.test_fast_paths import OPTIONS, SPANS
from tests.tuning.shots import review_rows, review_task

GENERATOR = torch.Generator().manual_seed(7)
TWO, FOUR = (torch.randn(count, HIDDEN, generator=GENERATOR) for count in (2, 4))


def test_they_are_added_to_every_token_of_their_option_and_to_no_other() -> None:
    batch = collate([*OPTIONS, *SPANS], [0, 1, 0, 2, 0, 1])
    vectors = stack([TWO, FOUR, None])
    assert vectors is not None
    expected = torch.zeros(*batch.ids.shape, HIDDEN)
    for (window, first, last), row, index in zip(
        batch.options.tolist(), batch.option_row.tolist(), batch.option_index.tolist(), strict=True
    ):
        own = [TWO, FOUR, None][int(batch.prompt[row])]
        if own is not None and index < len(own):
            expected[window, first : last + 1] = own[index]
    torch.testing.assert_close(
        added_states(batch.token_option, batch.prompt[batch.window_row], vectors), expected
    )
    assert stack([None, None]) is None


@pytest.mark.parametrize("injection", ["prefix", "add"])
@torch.no_grad()
def test_the_forward_is_that_of_word_embeddings_moved_by_them(base: Base, injection: str) -> None:
    """By hand: the states at the input of the first layer are changed, row by row."""
    model = MRCModel(base.backbone, base.head).eval()
    prompts = torch.randn(2, LAYERS, LENGTH, HIDDEN, generator=GENERATOR)
    batch = collate(OPTIONS, [0, 1, 1, 0])
    found = model(batch, prompts, injection, labels=stack([TWO, FOUR]))
    plain = model(batch, prompts, injection)
    for window in range(len(batch.ids)):
        row = int(batch.window_row[window])
        task = int(batch.prompt[row])
        length = int(batch.mask[window].sum())
        slots = LENGTH if injection == "add" else 0
        ids, mask = batch.ids[window : window + 1, :length], batch.mask[window : window + 1, :length]
        if slots:
            ids, mask = base.backbone.with_slots(ids, mask, slots)
        hidden = base.backbone.embed(ids)
        for w, first, last in batch.options[batch.option_row == row].tolist():
            if w == window:
                place = (batch.options == torch.tensor([w, first, last])).all(1).nonzero().item()
                index = int(batch.option_index[place])
                if index < len((TWO, FOUR)[task]):
                    hidden[0, first + slots : last + 1 + slots] += (TWO, FOUR)[task][index]
        composed = Prompts(prompts[task : task + 1], None, injection)  # type: ignore[arg-type]
        states = base.backbone.run(hidden, mask, composed)
        states = torch.cat([states[:, :1], states[:, 1 + slots :]], dim=1)
        torch.testing.assert_close(found[window, :length], model.head(states)[0], atol=1e-5, rtol=1e-5)
        assert (found[window, :length] - plain[window, :length]).abs().max() > 1e-3


def test_only_the_vectors_of_labels_that_are_there_take_a_gradient(base: Base) -> None:
    model = MRCModel(base.backbone, base.head).eval()
    vectors = torch.zeros(1, 5, HIDDEN, requires_grad=True)
    batch = collate(OPTIONS[:2])
    model(batch, labels=vectors)[batch.mask].square().sum().backward()
    assert vectors.grad is not None
    assert [bool(one.any()) for one in vectors.grad[0]] == [True, True, True, True, False]


def test_a_task_with_them_is_answered_beside_others_as_alone(base: Base) -> None:
    task, (train, dev) = review_task(), review_rows(review_task())
    adapters = {
        name: tune(base, task, train, dev, get_method(name), seed=1)
        for name in ("mp2-deep-labels", "mp2-deep-gd-router")
    }
    adapters["mp2-deep-labels"].tensors["labels"] = torch.randn(2, HIDDEN, generator=GENERATOR)
    predictor = Predictor(base)
    for name, adapter in adapters.items():
        predictor.add(name, adapter)
    texts = ["很好", "太差难看的一家店，再也不来"]
    mixed = predictor.predict([(name, text) for text in texts for name in adapters])
    for name, found in (("mp2-deep-labels", mixed[::2]), ("mp2-deep-gd-router", mixed[1::2])):
        for text, one in zip(texts, found, strict=True):
            (alone,) = predictor.predict([(name, text)])
            assert one.answer.options == pytest.approx(alone.answer.options, abs=1e-5)


@pytest.mark.parametrize("method", ["mp2-deep-labels", "linear-probing"])
def test_what_knows_labels_by_their_place_is_refused_in_another_order(
    base: Base, tmp_path: Path, method: str
) -> None:
    task = review_task()
    adapter = tune(base, task, *review_rows(task), get_method(method), seed=1)
    if method == "mp2-deep-labels":  # the dev rows may have kept the router alone
        adapter.tensors["labels"] = torch.zeros(2, HIDDEN)
    adapter.save(tmp_path / "a")
    first, second = task.labels
    file = tmp_path / "a" / "task.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(first, "\0").replace(second, first).replace("\0", second), encoding="utf-8")
    with pytest.raises(CheckpointError, match="keep their order"):
        load_adapter(tmp_path / "a")


def test_labels_keep_their_vectors_when_reworded(base: Base, tmp_path: Path) -> None:
    task = review_task()
    adapter = tune(base, task, *review_rows(task), get_method("mp2-deep-labels"), seed=1)
    adapter.tensors["labels"] = torch.randn(2, HIDDEN, generator=GENERATOR)
    adapter.save(tmp_path / "a")
    first, second = task.labels
    file = tmp_path / "a" / "task.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(first, "新词"), encoding="utf-8")
    loaded = load_adapter(tmp_path / "a")
    assert loaded.task.labels == ("新词", second)
    labels = compose(loaded, base).labels
    assert labels is not None and torch.equal(labels, adapter.tensors["labels"])
    file.write_text(text, encoding="utf-8")
    facts = json.loads((tmp_path / "a" / "adapter.json").read_text(encoding="utf-8"))
    assert facts["labels"] == [first, second]
    adapter.tensors["labels"] = torch.zeros(3, HIDDEN)
    with pytest.raises(CheckpointError, match=rf"labels: expected \(2, {HIDDEN}\), got \(3, {HIDDEN}\)"):
        compose(adapter, base)
