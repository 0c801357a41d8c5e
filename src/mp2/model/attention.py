"""Prefix attention through transformers' public ``AttentionInterface``.

Layer l's attention sees ``[W_k p_l ; W_k h]`` and ``[W_v p_l ; W_v h]``: keys and values of the prompt are
put in front, no prompt position has a query, and the frozen layers stay Hugging Face's own modules. It
equals replacing P slots before every layer (P-tuning v2 / prefix tuning) at almost the cost of the bare
encoder. The prompt travels as a keyword argument of the layer call, so nothing is stored on a module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

NAME = "mp2_prefix"


@dataclass(frozen=True, slots=True)
class Prefix:
    """Prompts of one layer, for a batch of B windows.

    Attributes:
        prompts: ``(R, P, H)`` prompts of the R distinct tasks of the batch, or what :func:`project` made of
            them, ``(R, 2, heads, P, head size)``.
        rows: ``(B,)`` which of the R prompts each window uses; None when R is 1.
    """

    prompts: Tensor
    rows: Tensor | None


def project(module: Any, prompts: Tensor) -> Tensor:
    """Keys and values that a layer makes of prompts: ``(..., P, H)`` to ``(..., 2, heads, P, head size)``."""
    both = torch.stack([module.key(prompts), module.value(prompts)], dim=-3)
    heads: Tensor = both.reshape(*both.shape[:-1], -1, module.attention_head_size)
    return heads.transpose(-3, -2)


def per_window(prefix: Prefix, windows: Tensor) -> Tensor:
    """Keys and values of a projected prefix for each of B windows, ``(B, 2, heads, P, head size)``."""
    if prefix.rows is not None:
        return prefix.prompts[prefix.rows]
    return prefix.prompts.expand(len(windows), -1, -1, -1, -1)  # len() fixes B in an exported graph


def prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with an optional prompt prefix.

    Args:
        module: The layer's self-attention, whose ``key`` and ``value`` project the prompt.
        query: ``(B, heads, Q, head size)``; Q is T, or fewer where few tokens are asked for.
        key: ``(B, heads, T, head size)``; ``value`` alike.
        value: See ``key``.
        attention_mask: ``(B, 1, 1, P + T)`` bool or additive, the prefix already in it; None for all.
        scaling: Factor of the logits, 1/sqrt(head size) when None.
        dropout: Dropout of the attention probabilities.
        prefix: The prompt of this layer, or None.

    Returns:
        ``(B, Q, heads, head size)`` and None (no weights are kept).
    """
    if prefix is not None:
        both = prefix if prefix.prompts.dim() == 5 else Prefix(project(module, prefix.prompts), prefix.rows)
        keys, values = per_window(both, key).to(key.dtype).unbind(1)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    if _better_plain(query, key):
        output = _plain(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5, dropout)
    else:
        with _without_plans(query):
            output = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
            )
    return output.transpose(1, 2), None


def _without_plans(query: Tensor) -> AbstractContextManager[None]:
    """On a card all kernels but cuDNN's, which plans anew for every shape, and our batches have many."""
    if not query.is_cuda:
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    found: AbstractContextManager[None] = sdpa_kernel(kernels)
    return found


def _better_plain(query: Tensor, key: Tensor) -> bool:
    """On a processor plain products beat the fused kernel's backward pass, and the whole of it in bf16."""
    asked = query.requires_grad or key.requires_grad or query.dtype == torch.bfloat16
    return query.device.type == "cpu" and asked


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Attention as it is written in papers. No query may be without any key (our rows have a first token)."""
    scores = (query * scale) @ key.transpose(-2, -1)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    if mask is not None:
        scores = scores.add_(mask)
    shares = scores.softmax(dim=-1)
    return (F.dropout(shares, dropout) if dropout else shares) @ value


AttentionInterface.register(NAME, prefix_attention)
