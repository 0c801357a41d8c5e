"""Attention over windows that lie end to end, for many candidates: four ways to the same numbers.

``attend`` is plain. ``merge`` adds a prompt to attention whose text part is known; ``join`` is what the slots
of a prompt see of themselves and of a text that all candidates share. ``absorb`` asks for few tokens without
projecting keys and values of all the others. Decides nothing about which is used where
(``mp2.model.population``). A module here is the self-attention of a Hugging Face BERT-like layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mp2.model.windows import Edges


def heads(module: Any, projected: Tensor) -> Tensor:
    """``(..., tokens, H)`` to ``(..., heads, tokens, head size)``."""
    size = module.attention_head_size
    return projected.view(*projected.shape[:-1], projected.shape[-1] // size, size).transpose(-2, -3)


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
    count, length = len(key), key.shape[2]
    # one product for all candidates, (heads, s, N*P)
    scores = query @ key.permute(1, 3, 0, 2).flatten(2) * scale(module)
    each = scores.view(*scores.shape[:2], count, length).permute(2, 0, 1, 3)
    text = weight[None, ..., None].expand(count, -1, -1, 1)
    shares = torch.cat([text, each], dim=-1).softmax(dim=-1)
    merged = torch.addcmul(shares[..., 1:] @ value, shares[..., :1], own)
    return merged.transpose(1, 2).flatten(2)


def join(
    module: Any, query: Tensor, key: Tensor, value: Tensor, text_key: Tensor, text_value: Tensor
) -> Tensor:
    """Attention of a prompt's slots to each other and to a text whose keys and values are shared.

    Args:
        module: The layer's self-attention.
        query: ``(N, heads, P, size)`` of the slots; ``key`` and ``value`` alike.
        key: See ``query``.
        value: See ``query``.
        text_key: ``(heads, T, size)``; ``text_value`` alike.
        text_value: See ``text_key``.

    Returns:
        ``(N, P, H)``.
    """
    count, parts, length, size = query.shape
    apart = (parts, count, length, -1)
    # as one query of all candidates' slots, so that no text is copied
    together = query.transpose(0, 1).reshape(parts, count * length, size)
    far = (together @ text_key.transpose(-1, -2)).view(apart).transpose(0, 1)
    scores = torch.cat([query @ key.transpose(-1, -2), far], dim=-1) * scale(module)
    shares = scores.softmax(dim=-1)
    text = shares[..., length:].transpose(0, 1).flatten(1, 2) @ text_value
    seen = shares[..., :length] @ value + text.view(apart).transpose(0, 1)
    return seen.transpose(1, 2).flatten(2)


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
