"""Attention over windows that lie end to end, for many candidates: three ways to the same numbers.

``attend`` is plain. ``merge`` adds a prompt to attention whose text part is known. ``absorb`` asks for few
tokens without projecting keys and values of all the others. Decides nothing about which is used where
(``mp2.model.population``). A module here is the self-attention of a Hugging Face BERT-like layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Edges = list[tuple[int, int]]


def heads(module: Any, projected: Tensor) -> Tensor:
    """``(..., tokens, H)`` to ``(..., heads, tokens, head size)``."""
    return projected.view(*projected.shape[:-1], -1, module.attention_head_size).transpose(-2, -3)


def scale(module: Any) -> float:
    """Factor of the attention logits."""
    return float(module.attention_head_size**-0.5)


def merge(module: Any, query: Tensor, own: Tensor, weight: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention to the text and a prompt, where the text's part is known.

    The text counts as one more key: its logit is its log-sum-exp, its value what the token took from it.

    Args:
        module: The layer's self-attention.
        query: ``(heads, s, size)``.
        own: ``(heads, s, size)`` attention to the text alone.
        weight: ``(heads, s)`` log-sum-exp of its logits.
        key: ``(N, heads, P, size)`` of the prompts.
        value: Like ``key``.

    Returns:
        ``(N, s, H)``.
    """
    scores = query @ key.transpose(-1, -2) * scale(module)
    text = weight[None, ..., None].expand(len(key), -1, -1, 1)
    shares = torch.cat([text, scores], dim=-1).softmax(dim=-1)
    merged = torch.addcmul(shares[..., 1:] @ value, shares[..., :1], own)
    return merged.transpose(1, 2).flatten(2)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    windows: Edges,
    asking: Edges,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention within each window, and to the prompt before it.

    Args:
        module: The layer's self-attention.
        query: ``(N, q, H)``.
        key: ``(N, s, H)``; ``value`` alike.
        value: See ``key``.
        windows: Keys ``[from, to)`` of each window.
        asking: Queries ``[from, to)`` of each window.
        prefix: Keys and values ``(N or 1, heads, P, size)`` of the prompts.

    Returns:
        ``(N, q, H)``.
    """
    queries, keys, values = (heads(module, x) for x in (query, key, value))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    front = [x.expand(len(query), -1, -1, -1) for x in prefix] if prefix is not None else None
    for (a, b), (c, d) in zip(windows, asking, strict=True):
        if c == d:
            continue
        seen, given = keys[:, :, a:b], values[:, :, a:b]
        if front is not None:
            seen, given = torch.cat([front[0], seen], dim=2), torch.cat([front[1], given], dim=2)
        one = F.scaled_dot_product_attention(queries[:, :, c:d], seen, given, scale=scale(module))
        out[:, c:d] = one.transpose(1, 2).flatten(2)
    return out


def absorb(
    module: Any, query: Tensor, hidden: Tensor, windows: Edges, asking: Edges, prompt: Tensor | None = None
) -> Tensor:
    """Attention of few queries, with the projections of keys and values moved to the queries' side.

    ``q . (W_k h) = (W_k^T q) . h`` and ``sum_t a_t W_v h_t = W_v sum_t a_t h_t``, so no key and no value of
    any token is projected. The key bias adds the same to every logit of a query, and cancels.

    Args:
        module: The layer's self-attention.
        query: ``(N, q, H)``.
        hidden: ``(N, s, H)`` at the input of the layer.
        windows: Tokens ``[from, to)`` of each window.
        asking: Queries ``[from, to)`` of each window.
        prompt: ``(N or 1, P, H)`` prompts in front of the text, or None.

    Returns:
        ``(N, q, H)``.
    """
    split = (-1, module.attention_head_size, query.shape[-1])
    asked = heads(module, query) @ module.key.weight.view(split)  # (N, heads, q, H)
    taken = torch.empty_like(asked)
    front = None if prompt is None else prompt.expand(len(query), -1, -1)
    for (a, b), (c, d) in zip(windows, asking, strict=True):
        if c == d:
            continue
        seen = hidden[:, a:b] if front is None else torch.cat([front, hidden[:, a:b]], dim=1)
        one = F.scaled_dot_product_attention(
            asked[:, :, c:d].flatten(1, 2)[:, None], seen[:, None], seen[:, None], scale=scale(module)
        )
        taken[:, :, c:d] = one.reshape(len(query), -1, d - c, query.shape[-1])
    values: Tensor = taken @ module.value.weight.view(split).transpose(-1, -2)
    bias: Tensor = module.value.bias
    return values.transpose(1, 2).flatten(2) + bias
