"""Candidates in one partial forward give what the model's own forward gives, wherever it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, ErnieConfig, ErnieModel

from mp2.data.batch import MRCBatch, collate
from mp2.data.encode import Encoded, Window
from mp2.errors import ConfigError
from mp2.model import frozen, population
from mp2.model.backbone import Backbone
from mp2.model.bank import Injection
from mp2.model.mrc import MRCModel, SpanHead
from mp2.model.population import Population
from tests.micro import HIDDEN, LAYERS, LENGTH, micro_encoder


@pytest.fixture(scope="module")
def model() -> MRCModel:
    return _model(micro_encoder(90))


def _model(encoder: Any) -> MRCModel:
    head = SpanHead(HIDDEN, generator=torch.Generator().manual_seed(3))
    return MRCModel(Backbone(encoder, slot_id=4), head).requires_grad_(False).eval()


def _batch() -> MRCBatch:
    """Rows with options, one of them over two windows, and a row of extraction."""
    generator = torch.Generator().manual_seed(4)

    def ids(length: int) -> list[int]:
        return [2, *torch.randint(5, 90, (length - 1,), generator=generator).tolist()]

    wide = (
        Window(ids(9), options=[(0, 3, 4)]),
        Window(ids(14), options=[(1, 6, 6), (2, 9, 11)], gold=(6, 6)),
    )
    rows = [
        Encoded((Window(ids(12), options=[(0, 8, 8), (1, 10, 11)], gold=(8, 8)),), 2, 0),
        Encoded(wide, 3, 1),
        Encoded((Window(ids(17), context=(2, 12), gold=(4, 6)),)),
    ]
    return collate(rows)


def _prompts(count: int, layers: int = LAYERS, seed: int = 2) -> Tensor:
    return torch.randn(count, layers, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def _plain(model: MRCModel, batch: MRCBatch, prompts: Tensor, injection: Injection) -> Tensor:
    return torch.stack([model(batch, one[None], injection) for one in prompts])


def _wanted(batch: MRCBatch) -> Tensor:
    """The ends of the options where there are options, else every token."""
    wanted = batch.mask.clone()
    wanted[batch.options[:, 0]] = False
    wanted[batch.options[:, 0], batch.options[:, 1]] = True
    wanted[batch.options[:, 0], batch.options[:, 2]] = True
    return wanted


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "lanes"), [(1, 1), (1, 3), (60, 1), (60, 2), (10_000, 1), (10_000, 2)])
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("injection", ["prefix", "add"])
def test_each_layer_searched_from_kept_states_equals_the_whole_forward(
    model: MRCModel,
    injection: Injection,
    every: bool,
    tokens: int,
    lanes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(population, "lanes_for", lambda _: lanes)
    batch, candidates = _batch(), _prompts(5, 1, seed=5)
    wanted = batch.mask if every else _wanted(batch)
    forward = Population(model, batch, LENGTH, wanted, injection, tokens=tokens)
    # up, down and up again with other prompts below: nothing stale may be used
    for layer, seed in ((0, 2), (2, 2), (1, 2), (2, 6), (0, 7), (2, 7)):
        prompts = _prompts(1, seed=seed)
        forward.begin(layer, prompts)
        whole = prompts.repeat(5, 1, 1, 1)
        whole[:, layer] = candidates[:, 0]
        found = forward(candidates)
        torch.testing.assert_close(
            found[:, wanted], _plain(model, batch, whole, injection)[:, wanted], atol=1e-5, rtol=1e-5
        )
        assert found[:, ~wanted].isneginf().all()


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
def test_candidates_may_change_every_layer(model: MRCModel, injection: Injection) -> None:
    batch, candidates = _batch(), _prompts(4, seed=8)
    forward = Population(model, batch, LENGTH, _wanted(batch), injection)
    forward.begin(0, _prompts(1))
    wanted = _wanted(batch)
    expected = _plain(model, batch, candidates, injection)
    torch.testing.assert_close(forward(candidates)[:, wanted], expected[:, wanted], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
@pytest.mark.parametrize("layer", [0, 1, LAYERS - 1])
def test_layers_that_may_still_move_are_asked_as_they_are(injection: Injection, layer: int) -> None:
    model, batch, candidates = _model(micro_encoder(90)), _batch(), _prompts(3, 1, seed=5)
    forward = Population(model.requires_grad_(True), batch, LENGTH, batch.mask, injection)
    quick = Population(model.requires_grad_(False), batch, LENGTH, batch.mask, injection)
    assert (forward._frozen, quick._frozen) == (False, True)
    for one in (forward, quick):
        one.begin(layer, _prompts(1))
    whole = _prompts(1).repeat(3, 1, 1, 1)
    whole[:, layer] = candidates[:, 0]
    expected = _plain(model, batch, whole, injection)
    for found in (forward(candidates), quick(candidates)):
        torch.testing.assert_close(found[:, batch.mask], expected[:, batch.mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_shallow_banks_in_encoders_of_any_depth(injection: Injection, layers: int) -> None:
    model, batch, candidates = _model(micro_encoder(90, layers=layers)), _batch(), _prompts(3, 1, seed=8)
    forward = Population(model, batch, LENGTH, batch.mask, injection)
    forward.begin(0, candidates[:1])
    expected = _plain(model, batch, candidates, injection)
    torch.testing.assert_close(
        forward(candidates)[:, batch.mask], expected[:, batch.mask], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
@pytest.mark.parametrize("few", [True, False])
def test_few_and_many_picked_tokens_take_different_ways_to_the_same_logits(
    model: MRCModel, injection: Injection, few: bool
) -> None:
    batch, candidates = _batch(), _prompts(3, seed=8)
    wanted = batch.mask.clone()
    if few:
        wanted[:] = False
        wanted[:, 3] = True
    forward = Population(model, batch, LENGTH, wanted, injection)
    assert forward._absorbs(LAYERS - 1) == few
    forward.begin(1, candidates[:1])
    whole = torch.cat([candidates[:1].expand(3, -1, -1, -1)[:, :1], candidates[:, 1:]], dim=1)
    expected = _plain(model, batch, whole, injection)
    found = forward(candidates[:, 1:])
    torch.testing.assert_close(found[:, wanted], expected[:, wanted], atol=1e-5, rtol=1e-5)


def _electra() -> Any:
    return ElectraModel(ElectraConfig(embedding_size=16, **_SHAPE))


def _ernie() -> Any:
    return ErnieModel(ErnieConfig(**_SHAPE))


def _token_types() -> Any:
    return BertModel(BertConfig(hidden_act="relu", **_SHAPE), add_pooling_layer=False)


_SHAPE = {
    "vocab_size": 90,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@torch.no_grad()
@pytest.mark.parametrize("make", [_electra, _ernie, _token_types])
def test_other_encoders(make: Callable[[], Any]) -> None:
    torch.manual_seed(3)
    model, batch, prompts = _model(make().eval()), _batch(), _prompts(1, 2)
    candidates = _prompts(3, 1, seed=5)
    forward = Population(model, batch, LENGTH, batch.mask)
    for layer in (0, 1):
        forward.begin(layer, prompts)
        whole = prompts.repeat(3, 1, 1, 1)
        whole[:, layer] = candidates[:, 0]
        expected = _plain(model, batch, whole, "prefix")
        found = forward(candidates)
        torch.testing.assert_close(found[:, batch.mask], expected[:, batch.mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
@pytest.mark.parametrize("few", [True, False])
def test_under_autocast_all_products_are_in_bf16_and_what_is_kept_in_fp32(
    model: MRCModel, injection: Injection, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, candidates, seen = _batch(), _prompts(3, 1, seed=5), []
    product = frozen._Product.product
    monkeypatch.setattr(
        frozen._Product, "product", lambda self, *rest: seen.append(self.dtype) or product(self, *rest)
    )
    wanted = _wanted(batch) if few else batch.mask
    for layer in range(LAYERS):
        exact, half = (Population(model, batch, LENGTH, wanted, injection) for _ in range(2))
        exact.begin(layer, _prompts(1))
        expected = exact(candidates)[:, wanted]
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            half.begin(layer, _prompts(1))
            found = half(candidates)[:, wanted]
        assert set(seen) == {torch.bfloat16}
        assert {kept.dtype for kept in (found, half._common.weight, *half._inputs)} == {torch.float32}
        assert 0 < float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_no_gradient_is_built_and_nothing_of_the_model_changes(model: MRCModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, candidates = _batch(), _prompts(2, 1).requires_grad_(True)
    forward = Population(model, batch, LENGTH, batch.mask)
    forward.begin(1, _prompts(1))
    logits = forward(candidates)
    assert not logits.requires_grad
    assert logits.is_inference()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_without_prompts_is_refused(model: MRCModel) -> None:
    batch = _batch()
    forward = Population(model, batch, LENGTH, batch.mask)
    with pytest.raises(ConfigError, match="layers 0 to 0"):
        forward.begin(1, _prompts(1, 1))
