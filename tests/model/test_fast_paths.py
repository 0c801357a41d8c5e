"""What is left out to be quick changes nothing: each fast path against the plain one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from transformers import ElectraConfig, ElectraModel

from mp2.data.batch import collate
from mp2.data.encode import Encoded, Window
from mp2.model.answers import answer_rows, read_answers
from mp2.model.attention import prefix_attention
from mp2.model.backbone import Backbone, Prompts
from mp2.model.checkpoint import Base
from mp2.model.mrc import MRCModel
from mp2.model.spans import option_log_probs, row_losses
from tests.micro import HIDDEN, LAYERS, LENGTH

GENERATOR = torch.Generator().manual_seed(11)


def _ids(length: int) -> list[int]:
    return [2, *torch.randint(5, 90, (length - 1,), generator=GENERATOR).tolist()]


def _choice(length: int, options: int, windows: int = 1) -> Encoded:
    """A row whose options stand at the end of its windows, the last one the right one."""
    made = []
    for w in range(windows):
        spans = [
            (w * options + i, length - 2 * options + 2 * i, length - 2 * options + 2 * i)
            for i in range(options)
        ]
        gold = spans[-1][1:] if w == windows - 1 else None
        made.append(Window(_ids(length), options=spans, gold=gold))
    return Encoded(tuple(made), options * windows, options * windows - 1)


def _span(length: int) -> Encoded:
    place = (3, length - 2)
    offsets = [(i, i + 1) for i in range(length - 4)]
    return Encoded((Window(_ids(length), context=place, gold=(4, 5), offsets=offsets),))


OPTIONS = [_choice(14, 2), _choice(30, 4), _choice(22, 3, windows=2), _choice(14, 2)]
SPANS = [_span(18), _span(31)]
PROMPTS = torch.randn(3, LAYERS, LENGTH, HIDDEN, generator=GENERATOR)


@pytest.mark.parametrize("injection", ["prefix", "add"])
def test_reading_options_alone_gives_their_shares_their_loss_and_its_gradient(
    base: Base, injection: str
) -> None:
    batch, gradients, losses = collate(OPTIONS, [0, 2, 1, 1]), [], []
    shares: list[list[torch.Tensor]] = []
    for options_only in (False, True):
        prompts = PROMPTS.clone().requires_grad_(True)
        logits = base.model()(batch, prompts, injection, options_only=options_only)
        loss, known = row_losses(logits, batch, "option")
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append(prompts.grad)
        shares.append(option_log_probs(logits.detach(), batch))
        assert int(known.sum()) == batch.known == 4
    assert int(logits.isfinite().all(-1).sum()) == 2 + 4 + 2 * 3 + 2
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    for slow, fast in zip(*shares, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_span_rows_are_always_read_whole(base: Base) -> None:
    batch = collate([*SPANS, *OPTIONS])
    assert batch.asked.shape == (7, 0)
    plain = base.model()(batch, PROMPTS[:1])
    torch.testing.assert_close(base.model()(batch, PROMPTS[:1], options_only=True), plain)


@torch.no_grad()
def test_keys_and_values_projected_once_give_the_same(base: Base) -> None:
    batch = collate([*OPTIONS, *SPANS], [2, 0, 1, 2, 0, 1])
    states = base.backbone.prefix_states(PROMPTS)
    assert states.shape == (3, LAYERS, 2, 4, LENGTH, HIDDEN // 4)
    model = base.model()
    torch.testing.assert_close(model(batch, states), model(batch, PROMPTS), atol=1e-6, rtol=1e-5)
    single = collate([*OPTIONS, *SPANS])
    torch.testing.assert_close(model(single, states[:1]), model(single, PROMPTS[:1]), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "lanes"), [(64, 1), (64, 3), (8192, 1)])
def test_answers_are_those_of_each_row_read_alone_and_whole(
    base: Base, monkeypatch: pytest.MonkeyPatch, tokens: int, lanes: int
) -> None:
    monkeypatch.setattr("mp2.model.answers.lanes_for", lambda device, pieces: lanes)
    rows = [SPANS[0], OPTIONS[0], OPTIONS[1], SPANS[1], OPTIONS[2], OPTIONS[3]]
    which = [0, 2, 1, 1, 2, 0]
    contexts = ["".join(chr(0x4E00 + i) for i in range(40))] * 6
    options: Sequence[Sequence[str]] = [[str(i) for i in range(row.n_options)] for row in rows]
    found = answer_rows(base.model(), rows, contexts, options, PROMPTS, which, tokens=tokens)
    for place, row in enumerate(rows):
        batch = collate([row])
        logits = base.model()(batch, PROMPTS[which[place]][None])
        (alone,) = read_answers(logits, batch, [row], [contexts[place]], [options[place]])
        assert (found[place].text, found[place].span) == (alone.text, alone.span)
        assert found[place].probability == pytest.approx(alone.probability, abs=1e-5)
        assert found[place].options == pytest.approx(alone.options, abs=1e-5)


@torch.no_grad()
def test_picked_tokens_of_another_encoder_are_those_of_the_whole_row() -> None:
    torch.manual_seed(3)
    shape = ElectraConfig(
        vocab_size=90,
        hidden_size=HIDDEN,
        embedding_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    backbone = Backbone(ElectraModel(shape)).eval()
    batch = collate([_choice(12, 2), _choice(20, 2)])
    prompts = Prompts(PROMPTS[:1, :2])
    whole = backbone(batch.ids, batch.mask, prompts)
    picked = backbone(batch.ids, batch.mask, prompts, picks=batch.asked)
    expected = torch.stack([whole[b, batch.asked[b]] for b in range(2)])
    torch.testing.assert_close(picked, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_batch_without_padding_needs_no_mask(base: Base) -> None:
    even, uneven = collate([_choice(14, 2), _choice(14, 3)]), collate(OPTIONS)
    assert even.full and not uneven.full
    backbone, prompts = base.backbone, Prompts(PROMPTS[:1])
    masked = backbone(even.ids, even.mask, prompts, full=False)
    torch.testing.assert_close(
        backbone(even.ids, even.mask, prompts, full=True), masked, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_options_need_only_their_own_tokens_in_any_model(base: Base) -> None:
    heads = (torch.randn(3, 2, HIDDEN, generator=GENERATOR), torch.randn(3, 2, generator=GENERATOR))
    batch, model = collate(OPTIONS, [0, 2, 1, 1]), MRCModel(base.backbone, base.head)
    plain = option_log_probs(model(batch, PROMPTS, heads=heads), batch)
    quick = option_log_probs(model(batch, PROMPTS, heads=heads, options_only=True), batch)
    for slow, fast in zip(plain, quick, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_plain_attention_with_gradients_takes_every_kind_of_mask(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    masks = {"none": None, "bool": seen, "additive": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=masks[kind])
    query.requires_grad_(True)
    found, _ = prefix_attention(None, query, key, value, masks[kind])
    torch.testing.assert_close(found, expected.transpose(1, 2))
    found.sum().backward()
    assert query.grad is not None and bool(query.grad.isfinite().all())
