"""The forward that all methods share: injection, padding, batch mates, mixed tasks."""

from __future__ import annotations

import pytest
import torch
from transformers import ElectraConfig, ElectraModel, ErnieConfig, ErnieModel

from mp2.data.batch import collate
from mp2.data.encode import Encoded, Window
from mp2.model.backbone import Backbone, Prompts
from mp2.model.checkpoint import Base
from tests.micro import HIDDEN, LAYERS, LENGTH, micro_encoder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(micro_encoder(90), slot_id=4).eval()


def _inputs(rows: int = 3, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (rows, width), generator=generator)
    mask = torch.ones(rows, width, dtype=torch.bool)
    mask[1, 6:] = False
    return ids, mask


def _prompts(tasks: int, layers: int = LAYERS) -> torch.Tensor:
    return torch.randn(tasks, layers, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(2))


def _replacing(
    backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """P slots in the sequence whose states are replaced before every layer, with plain attention."""
    hidden = backbone.embed(ids)
    slots = prompts.shape[2]
    wide = torch.cat([torch.ones(len(ids), slots, dtype=torch.bool), mask], dim=1)[:, None, None, :]
    for index, layer in enumerate(backbone.layers):
        prompt = prompts[:, index].expand(len(ids), -1, -1)
        hidden = layer(torch.cat([prompt, hidden], dim=1), wide)[:, slots:]
    return hidden


@torch.no_grad()
def test_prefix_equals_replacing_the_slots_before_each_layer(backbone: Backbone) -> None:
    ids, mask = _inputs()
    prompts = _prompts(1)
    ours = backbone(ids, mask, Prompts(prompts))
    torch.testing.assert_close(
        ours[mask], _replacing(backbone, ids, mask, prompts)[mask], atol=1e-5, rtol=1e-5
    )
    assert (ours - backbone(ids, mask))[mask].abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, LAYERS])
def test_add_equals_the_formula(backbone: Backbone, layers: int) -> None:
    ids, mask = _inputs()
    prompts = _prompts(1, layers)
    wide_ids = torch.cat([ids[:, :1], torch.full((3, LENGTH), 4), ids[:, 1:]], dim=1)
    wide_mask = torch.cat([mask[:, :1], torch.ones(3, LENGTH, dtype=torch.bool), mask[:, 1:]], dim=1)
    hidden = backbone.embed(wide_ids)
    for index, layer in enumerate(backbone.layers):
        if index < layers:
            hidden = hidden.clone()
            hidden[:, 1 : LENGTH + 1] += prompts[0, index]
        hidden = layer(hidden, wide_mask[:, None, None, :])
    expected = torch.cat([hidden[:, :1], hidden[:, LENGTH + 1 :]], dim=1)
    ours = backbone(ids, mask, Prompts(prompts, injection="add"))
    torch.testing.assert_close(ours[mask], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("config", "model"), [(ElectraConfig, ElectraModel), (ErnieConfig, ErnieModel)])
@torch.no_grad()
def test_other_encoders_give_their_own_hidden_states(config: type, model: type) -> None:
    torch.manual_seed(3)
    shape = config(
        vocab_size=90,
        hidden_size=HIDDEN,
        embedding_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    encoder = model(shape).eval()
    ids, mask = _inputs()
    expected = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    ours = Backbone(encoder)(ids, mask)
    torch.testing.assert_close(ours[mask], expected[mask], atol=1e-6, rtol=1e-6)


def _rows() -> list[Encoded]:
    """Rows of different lengths, families and option counts."""
    generator = torch.Generator().manual_seed(4)
    lengths = [12, 30, 7, 19, 25, 15]
    rows = []
    for number, length in enumerate(lengths):
        ids = [2, *torch.randint(5, 90, (length - 1,), generator=generator).tolist()]
        if number % 2:
            rows.append(Encoded((Window(ids, context=(3, length - 2), gold=(4, 5)),)))
        else:
            spans = [(i, length - 4 + i, length - 4 + i) for i in range(3)]
            rows.append(Encoded((Window(ids, options=spans, gold=spans[1][1:]),), 3, 1))
    return rows


@torch.no_grad()
@pytest.mark.parametrize("injection", ["prefix", "add"])
def test_a_row_is_the_same_alone_in_any_batch_and_beside_other_tasks(base: Base, injection: str) -> None:
    rows, model = _rows(), base.model()
    prompts = _prompts(4)
    which = [3, 0, 1, 3, 2, 0]
    together = collate(rows, which)
    logits = model(together, prompts, injection)
    for number, row in enumerate(rows):
        alone = model(collate([row]), prompts[which[number]][None], injection)[0]
        torch.testing.assert_close(logits[number, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing(base: Base) -> None:
    model, prompts = base.model(), _prompts(1)
    short = collate(_rows()[:1])
    ids = torch.nn.functional.pad(short.ids, (0, 20), value=17)
    mask = torch.nn.functional.pad(short.mask, (0, 20))
    plain = model.backbone(short.ids, short.mask, Prompts(prompts))
    padded = model.backbone(ids, mask, Prompts(prompts))
    torch.testing.assert_close(padded[:, : plain.shape[1]], plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_running_from_a_cached_layer_gives_the_same(backbone: Backbone) -> None:
    ids, mask = _inputs()
    prompts = Prompts(_prompts(1))
    below = backbone.run(backbone.embed(ids), mask, prompts, stop=2)
    torch.testing.assert_close(backbone.run(below, mask, prompts, start=2), backbone(ids, mask, prompts))


def test_checkpointing_gives_the_same_gradient(backbone: Backbone) -> None:
    ids, mask = _inputs()
    gradients = []
    for on in (False, True):
        prompts = _prompts(1).requires_grad_(True)
        backbone.checkpointing = on
        backbone(ids, mask, Prompts(prompts)).sum().backward()
        gradients.append(prompts.grad)
    backbone.checkpointing = False
    torch.testing.assert_close(gradients[0], gradients[1])
