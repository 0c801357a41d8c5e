"""Frozen layers in quick steps on a processor: the same as Hugging Face's layers, and only where they may."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

from mp2.model import frozen
from mp2.model.backbone import Backbone, Prompts
from mp2.model.checkpoint import Base
from tests.micro import HIDDEN, LAYERS, LENGTH

GENERATOR = torch.Generator().manual_seed(3)
IDS = torch.randint(5, 90, (3, 12), generator=GENERATOR)
MASK = torch.arange(12) < torch.tensor([[12], [7], [9]])
PROMPTS = torch.randn(2, LAYERS, LENGTH, HIDDEN, generator=GENERATOR)
ROWS = torch.tensor([1, 0, 1])
TOWARDS = torch.randn(3, 12, HIDDEN, generator=GENERATOR)


@pytest.fixture
def backbone(base: Base) -> Backbone:
    return copy.deepcopy(base.backbone).eval().requires_grad_(False)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For the slow way: no layer counts as frozen."""
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "runs", lambda layer: False)
        yield patch


def _both(
    backbone: Backbone,
    patch: pytest.MonkeyPatch,
    picks: Tensor | None = None,
    *,
    full: bool = False,
    half: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states and the prompts' gradient, slow and fast; ``half`` is for the fast ones alone."""
    found = []
    mask = torch.ones_like(MASK) if full else MASK
    for step in range(2):
        if step:
            patch.undo()
            assert frozen.runs(backbone.layers[0])
        prompts = PROMPTS.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half and step == 1):
            hidden = backbone(IDS, mask, Prompts(prompts, ROWS), picks=picks)
        towards = TOWARDS if picks is None else frozen.at(TOWARDS, picks)
        keep = mask if picks is None else torch.ones_like(picks, dtype=torch.bool)
        (hidden * towards)[keep].sum().backward()
        assert prompts.grad is not None
        found.append([hidden.detach()[keep], prompts.grad])
    return found[0], found[1]


@pytest.mark.parametrize("full", [True, False])
def test_states_and_gradients_are_those_of_the_layers_themselves(
    backbone: Backbone, plainly: pytest.MonkeyPatch, full: bool
) -> None:
    slow, fast = _both(backbone, plainly, full=full)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [2, HIDDEN])
@pytest.mark.parametrize("full", [True, False])
def test_picked_tokens_alike_be_they_few_or_many(
    backbone: Backbone, plainly: pytest.MonkeyPatch, count: int, full: bool
) -> None:
    picks = torch.tensor([[1, 4], [0, 6], [2, 2]]).repeat(1, count // 2)
    slow, fast = _both(backbone, plainly, picks, full=full)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_without_gradients_the_activation_is_inside_the_product(
    backbone: Backbone, plainly: pytest.MonkeyPatch
) -> None:
    slow = backbone(IDS, MASK, Prompts(PROMPTS, ROWS))
    plainly.undo()
    torch.testing.assert_close(
        backbone(IDS, MASK, Prompts(PROMPTS, ROWS))[MASK], slow[MASK], atol=1e-5, rtol=1e-5
    )


def test_it_does_without_onednn(
    backbone: Backbone, plainly: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "_ORDERED", False)
    slow, fast = _both(backbone, plainly)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_bf16_stays_close_and_fp32_between_the_layers(backbone: Backbone) -> None:
    plain = backbone(IDS, MASK, Prompts(PROMPTS, ROWS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backbone(IDS, MASK, Prompts(PROMPTS.bfloat16(), ROWS))  # as a bank composes them here
    assert half.dtype == torch.float32
    assert 0 < float((half - plain)[MASK].abs().max()) < 0.05 * float(plain.abs().max())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [0, 2, HIDDEN])
def test_bf16_gradients_and_picked_tokens_stay_close(
    backbone: Backbone,
    plainly: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    ordered: bool,
) -> None:
    monkeypatch.setattr(frozen, "_ORDERED", frozen._ORDERED and ordered)
    picks = torch.tensor([[1, 4], [0, 6], [2, 2]]).repeat(1, count // 2) if count else None
    slow, fast = _both(backbone, plainly, picks, half=True)
    for exact, near in zip(slow, fast, strict=True):
        assert near.dtype == torch.float32
        assert 1e-4 < float((near - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("kind", ["relu", "gelu_new", "roberta", "electra"])
@torch.no_grad()
def test_relatives_of_bert_alike(kind: str, plainly: pytest.MonkeyPatch) -> None:
    shape = {
        "vocab_size": 90,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 4 * HIDDEN,
    }
    torch.manual_seed(0)
    if kind == "electra":
        encoder = ElectraModel(ElectraConfig(embedding_size=HIDDEN, **shape))
    else:
        activation = {} if kind == "roberta" else {"hidden_act": kind}
        encoder = RobertaModel(RobertaConfig(**shape, **activation), add_pooling_layer=False)
    backbone = Backbone(encoder.eval().requires_grad_(False))
    slow = backbone(IDS, MASK, Prompts(PROMPTS, ROWS))[MASK]
    plainly.undo()
    assert frozen.runs(backbone.layers[0])
    torch.testing.assert_close(backbone(IDS, MASK, Prompts(PROMPTS, ROWS))[MASK], slow, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_changed_weights_are_noticed(backbone: Backbone, plainly: pytest.MonkeyPatch) -> None:
    plainly.undo()
    before = backbone(IDS, MASK)
    layer = backbone.get_submodule("layers.0")
    layer.get_submodule("output.dense").weight += 0.1  # as a low-rank update does
    changed = backbone(IDS, MASK)
    assert not torch.equal(changed, before)
    torch.testing.assert_close(copy.deepcopy(backbone)(IDS, MASK), changed)


def test_a_model_that_nobody_holds_goes_with_what_was_prepared(base: Base) -> None:
    backbone = copy.deepcopy(base.backbone).eval().requires_grad_(False)
    backbone(IDS, MASK, Prompts(PROMPTS.clone().requires_grad_(True), ROWS)).sum().backward()
    left = weakref.ref(backbone.get_submodule("layers.0.attention.self.query"))
    assert left() in frozen._made
    del backbone
    gc.collect()
    assert left() is None


def test_layers_that_move_drop_or_are_no_plain_ones_are_left_to_hugging_face(backbone: Backbone) -> None:
    layer = backbone.layers[0]
    assert frozen.runs(layer)
    assert not frozen.runs(layer.train())
    layer.eval()
    layer.get_submodule("attention.self.query").weight.requires_grad_(True)
    assert not frozen.runs(layer)
    backbone.requires_grad_(False)
    assert not frozen.runs(layer.bfloat16())
    assert not frozen.runs(torch.nn.Linear(2, 2))


def test_products_are_taken_over_few_numbers_of_rows(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not frozen._ORDERED:
        pytest.skip("this release of torch has no products in oneDNN's order")
    seen: set[int] = set()
    product = torch.ops.mkldnn._linear_pointwise

    def counting(x: Tensor, *rest: object) -> Tensor:
        seen.add(len(x))
        return product(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counting)
    prompts = torch.randn(1, LAYERS, LENGTH, HIDDEN, requires_grad=True)
    for length in range(4, 20):
        ids = torch.randint(5, 90, (3, length))
        with torch.no_grad():
            backbone(ids, torch.ones_like(ids, dtype=torch.bool), picks=torch.tensor([[1, 2]] * 3))
        backbone(ids, torch.ones_like(ids, dtype=torch.bool), Prompts(prompts)).sum().backward()
    assert seen == {16, 32, 48, 64}
    sizes = {rows: frozen.round_rows(rows) for rows in range(8193)}
    assert all(rows <= size <= max(rows + 15, rows * 17 / 16) for rows, size in sizes.items())
    assert len(set(sizes.values())) < 110
    nothing = torch.zeros(2, 0, HIDDEN)
    assert frozen._fused(nothing, frozen._ordered(torch.eye(HIDDEN))).shape == nothing.shape
