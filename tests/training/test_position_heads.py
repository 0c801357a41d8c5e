"""Heads that see neighbours: where they look, and what they leave alone."""

import pytest
import torch
from transformers import BertConfig, BertModel

from mp2.errors import ConfigError
from mp2.training.backbone import start_as_matching, start_with_words
from mp2.training.position_heads import add_position_heads

LENGTH, FIRST = 60, 399


def encoder(layers: int = 4) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400,
        hidden_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    made = BertModel(config, add_pooling_layer=False).eval()
    start_with_words(made, torch.randn(400, 256).numpy())
    start_as_matching(made)
    return made


def attention(model: BertModel, ids: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """``(T, T)`` shares of one head."""
    with torch.no_grad():
        return model(ids, output_attentions=True).attentions[layer][0, head]


@pytest.fixture(scope="module")
def model() -> BertModel:
    made = encoder()
    add_position_heads(made, torch.Generator().manual_seed(1), first=FIRST)
    return made


def test_one_head_looks_at_the_word_before_and_one_at_the_word_after(model: BertModel) -> None:
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(2))[None, :LENGTH]
    before, after = (attention(model, ids, 0, head).argmax(1) for head in (1, 2))
    assert before[1:].tolist() == list(range(LENGTH - 1))
    assert after[:-1].tolist() == list(range(1, LENGTH))


def test_a_head_looks_around(model: BertModel) -> None:
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(3))[None, :LENGTH]
    shares = attention(model, ids, 1, 2)
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    near = (shares * (distance <= 5)).sum(1)
    assert near.mean() > 2.5 * (distance <= 5).float().mean()


def test_a_head_finds_the_same_word_far_away_or_looks_at_the_first_token(model: BertModel) -> None:
    found, missing, elsewhere = [], [], []
    for seed in range(10):
        words = torch.randperm(399, generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([torch.tensor([FIRST]), words[:10], words[20:25], words[:10], words[30:40]])
        shares = attention(model, ids[None], 0, 3)
        copied = torch.cat([torch.arange(1, 11), torch.arange(16, 26)])
        found.append(shares[copied, copied.roll(10)].mean())
        missing.append(shares[copied, 0].mean())
        elsewhere.append(shares[torch.arange(26, 36), 0].mean())
    assert torch.stack(found).mean() > 0.6
    assert torch.stack(elsewhere).mean() > 2.5 * torch.stack(missing).mean()


def test_the_order_of_words_changes_what_they_mean(model: BertModel) -> None:
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(5))[:LENGTH]
    swapped = torch.cat([ids[:20], ids[20:22].flip(0), ids[22:]])
    with torch.no_grad():
        one, other = (model(row[None]).last_hidden_state[0] for row in (ids, swapped))
        plain = encoder()
        bag_one, bag_other = (plain(row[None]).last_hidden_state[0] for row in (ids, swapped))
    assert (one[19] - other[19]).norm() > 5 * (bag_one[19] - bag_other[19]).norm()


def test_heads_that_are_not_named_stay(model: BertModel) -> None:
    fresh = encoder()
    room = 2 * (64 // 4) + 2
    for layer, head in ((0, 0), (1, 3), (3, 2)):
        at = slice(64 * head, 64 * (head + 1))
        old, new = (m.encoder.layer[layer].attention.self.query.weight[at] for m in (fresh, model))
        changed = torch.linalg.matrix_rank(old - new, tol=1e-4)
        assert 0 < changed <= room  # only what it read in the cleared directions


def test_an_encoder_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="need 3 layers"):
        add_position_heads(encoder(layers=2), torch.Generator(), first=FIRST)
