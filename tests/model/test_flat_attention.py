"""Each way to attend gives what PyTorch's own attention gives over all keys at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mp2.model.flat_attention import absorb, attend, heads, join, merge, scale
from tests.micro import HIDDEN, micro_encoder

N, P, T = 3, 4, 11


def module() -> Any:
    return micro_encoder(20).encoder.layer[0].attention.self


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``(N, heads, q, size)`` to ``(N, q, H)``."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_a_prompt_merged_with_a_known_text() -> None:
    layer = module()
    query, text_key, text_value = (heads(layer, drawn(T, HIDDEN, seed=s)) for s in (1, 2, 3))
    key, value = (heads(layer, drawn(N, P, HIDDEN, seed=s)) for s in (4, 5))
    scores = query @ text_key.transpose(-1, -2) * scale(layer)
    own, weight = scores.softmax(-1) @ text_value, scores.logsumexp(-1)
    whole = [
        torch.cat([mine, text.expand(N, -1, -1, -1)], 2)
        for mine, text in ((key, text_key), (value, text_value))
    ]
    expected = plain(query.expand(N, -1, -1, -1), *whole)
    torch.testing.assert_close(merge(layer, query, own, weight, key, value), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_slots_joined_with_a_shared_text() -> None:
    layer = module()
    text_key, text_value = (heads(layer, drawn(T, HIDDEN, seed=s)) for s in (2, 3))
    query, key, value = (heads(layer, drawn(N, P, HIDDEN, seed=s)) for s in (4, 5, 6))
    whole = [
        torch.cat([mine, text.expand(N, -1, -1, -1)], 2)
        for mine, text in ((key, text_key), (value, text_value))
    ]
    found = join(layer, query, key, value, text_key, text_value)
    torch.testing.assert_close(found, plain(query, *whole), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_few_queries_of_ragged_windows_with_and_without_a_prompt() -> None:
    layer, hidden, prompt = module(), drawn(N, T, HIDDEN), drawn(N, P, HIDDEN, seed=9)
    windows, asking, places = [(0, 4), (4, 5), (5, T)], [(0, 2), (2, 2), (2, 5)], [1, 3, 5, 8, 10]
    query = layer.query(hidden[:, places])
    for front in (None, prompt):
        own = None if front is None else (heads(layer, layer.key(front)), heads(layer, layer.value(front)))
        found = attend(layer, query, layer.key(hidden), layer.value(hidden), windows, asking, own)
        absorbed = absorb(layer, query, hidden, windows, asking, front)
        for (a, b), (c, d) in zip(windows, asking, strict=True):
            seen = hidden[:, a:b] if front is None else torch.cat([front, hidden[:, a:b]], dim=1)
            parts = (heads(layer, x) for x in (query[:, c:d], layer.key(seen), layer.value(seen)))
            expected = plain(*parts)
            torch.testing.assert_close(found[:, c:d], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(absorbed[:, c:d], expected, atol=1e-4, rtol=1e-4)
