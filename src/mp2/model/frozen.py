"""A layer whose weights do not move, in fewer and quicker steps on a processor.

The same sums as Hugging Face's layer, from the same weights: queries, keys and values are one product,
weights lie in the order that oneDNN's kernels read (which is a tenth to a fifth quicker than reading them as
they are), the activation is taken inside the product where no gradient is wanted, and the backward pass goes
to the input alone. Weights are prepared on first use, again after a change, and cost their memory once more
(twice where gradients pass). Decides nothing about prompts; ``backbone`` asks it where :func:`runs` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from mp2.model.attention import Prefix, per_window, prefix_attention
from mp2.model.attention import project as project_prompts

# What torch's own compiler makes of frozen linear layers; plain products where a release has no such thing.
_ORDERED = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linears(layer: Any) -> tuple[nn.Linear, ...]:
    """Query, key, value, output of attention, wide and narrow part of the feed-forward network."""
    attention, module = layer.attention, layer.attention.self
    return (
        module.query,
        module.key,
        module.value,
        attention.output.dense,
        layer.intermediate.dense,
        layer.output.dense,
    )


def runs(layer: Any) -> bool:
    """Whether a layer is frozen, at rest (no dropout), in fp32 on a processor, and made of plain parts."""
    try:
        modules = _linears(layer)
    except AttributeError:
        return False
    return not layer.training and all(
        type(m) is nn.Linear
        and m.bias is not None
        and not (m.weight.requires_grad or m.bias.requires_grad)
        and m.weight.device.type == "cpu"
        and m.weight.dtype == torch.float32
        and not m.weight.is_inference()
        for m in modules
    )


class _Product:
    """``x W' + b`` of one or several linear layers that read the same input, their outputs side by side.

    Args:
        modules: The linear layers.
        dtype: Type of the product.
    """

    def __init__(self, modules: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.weights = [m.weight.detach() for m in modules]  # not the modules, which are keys of a weak table
        self.dtype = dtype
        with torch.no_grad():
            self.bias = torch.cat([m.bias for m in modules]).to(dtype)
            self.ordered = _ordered(self._weight())
        self.turned: Tensor | None = None

    def _weight(self) -> Tensor:
        return torch.cat(self.weights).to(self.dtype)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """``(..., in)`` to ``(..., out)``; a gradient reaches ``x`` alone."""
        if x.requires_grad and torch.is_grad_enabled():
            found: Tensor = _ToInput.apply(x, self)  # type: ignore[no-untyped-call]
            return found
        return self.product(x, activation)

    def product(self, x: Tensor, activation: str = "none") -> Tensor:
        """Without a gradient, in the type of the product; ``activation`` is ``none`` or ``gelu``."""
        if _ORDERED:
            return _fused(x, self.ordered, self.bias, activation)
        plain = F.linear(x.to(self.dtype), self.ordered, self.bias)
        return F.gelu(plain) if activation == "gelu" else plain

    def back(self, gradient: Tensor) -> Tensor:
        """Gradient of the input, ``(..., out)`` to ``(..., in)``."""
        if not _ORDERED:
            return gradient @ self.ordered
        if self.turned is None:
            self.turned = _ordered(self._weight().t().contiguous())
        return _fused(gradient, self.turned)


def _ordered(weight: Tensor) -> Tensor:
    """A weight in the order in which oneDNN reads it."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None) if _ORDERED else weight
    return found


def _fused(x: Tensor, ordered: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """The product as oneDNN takes it, ``(..., in)`` to ``(..., out)``, over a round number of rows.

    It is in the weight's type; rows of another are converted by the copy that makes their number round.
    oneDNN compiles a kernel for each number of rows that it meets, in half a millisecond, and keeps the last
    thousand, each of half a mebibyte or more. Batches of ever other shapes would fill that for many minutes.
    """
    shape, wide = x.shape[:-1], x.reshape(-1, x.shape[-1])
    rows = len(wide)
    if rows < (full := round_rows(rows)):
        some, wide = wide, wide.new_empty(full, wide.shape[-1], dtype=ordered.dtype)
        wide[:rows], wide[rows:] = some, 0
    wide = wide.to(ordered.dtype)
    form = "none" if activation == "gelu" else ""  # gelu's own form: the exact one
    made: Tensor = torch.ops.mkldnn._linear_pointwise(wide, ordered, bias, activation, [], form)
    return made[:rows].view(*shape, made.shape[-1])


def round_rows(rows: int) -> int:
    """The next of few sizes: multiples of 16, from 512 on of ever larger powers of two.

    Adds up to 15 rows, beyond 256 a sixteenth at most.
    """
    step = 1 << max(4, rows.bit_length() - 5)
    return -(-rows // step) * step


class _ToInput(torch.autograd.Function):
    """A product that keeps nothing for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: _Product) -> Tensor:
        ctx.product_, ctx.dtype = product, x.dtype
        return product.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.product_.back(gradient).to(ctx.dtype), None


_made: WeakKeyDictionary[nn.Linear, dict[tuple[torch.dtype, int], tuple[Any, _Product]]] = WeakKeyDictionary()


def _product(dtype: torch.dtype, *modules: nn.Linear) -> _Product:
    """The product of these layers, as made before unless their weights have changed since."""
    state = tuple((p.data_ptr(), p._version) for m in modules for p in (m.weight, m.bias))
    held, key = _made.setdefault(modules[0], {}), (dtype, len(modules))
    if key not in held or held[key][0] != state:
        held[key] = (state, _Product(modules, dtype))
    return held[key][1]


def run(
    layer: Any, hidden: Tensor, mask: Tensor | None, prefix: Prefix | None = None, picks: Tensor | None = None
) -> Tensor:
    """One layer.

    Under autocast its products and its attention are in the type of that, sums and norms in fp32.

    Args:
        layer: Hugging Face's layer, for which :func:`runs` holds.
        hidden: ``(B, T, H)``.
        mask: ``(B, 1, 1, P + T)`` bool, or None for all.
        prefix: Its prompt, or None.
        picks: ``(B, W)`` tokens that ask; all of them when None.

    Returns:
        ``(B, T, H)``, or ``(B, W, H)``.
    """
    dtype = _type_of_products(hidden)
    module = layer.attention.self
    query, key, value = _linears(layer)[:3]
    if prefix is not None and prefix.prompts.dim() < 5:
        prefix = Prefix(project_prompts(module, prefix.prompts), prefix.rows)
    with torch.autocast("cpu", enabled=False):
        if picks is None:
            q, k, v = _heads(module, _product(dtype, query, key, value)(hidden), 3)
            found, _ = prefix_attention(module, q, k, v, mask, prefix=prefix)
        else:
            low, hidden = hidden.to(dtype), at(hidden, picks)
            (q,) = _heads(module, _product(dtype, query)(hidden), 1)
            if 2 * q.shape[1] * q.shape[2] <= hidden.shape[-1]:
                found = _absorbed(module, q, low, mask, prefix)
            else:
                k, v = _heads(module, _product(dtype, key, value)(low), 2)
                found, _ = prefix_attention(module, q, k, v, mask, prefix=prefix)
        output = finish(layer, found.flatten(2), hidden)
    return output


def _absorbed(
    module: Any, query: Tensor, hidden: Tensor, mask: Tensor | None, prefix: Prefix | None
) -> Tensor:
    """Attention of few tokens, without keys and values of all the others.

    A logit is ``q (W_k h + b_k) = (q W_k) h + q b_k``, and a sum of values is ``W_v`` of a sum of states:
    what asks goes through the weights, which is less where asking heads are fewer than half the width.

    Args:
        module: The layer's self-attention.
        query: ``(B, heads, W, size)``.
        hidden: ``(B, T, H)`` at the layer's input.
        mask: As for :func:`run`.
        prefix: Its prompt, projected, or None.

    Returns:
        ``(B, W, heads, size)``.
    """
    heads, dtype = query.shape[1], hidden.dtype
    query = query * module.attention_head_size**-0.5
    w_k, w_v = (m.weight.to(dtype).view(heads, -1, hidden.shape[-1]) for m in (module.key, module.value))
    b_k, b_v = (m.bias.to(dtype).view(heads, -1, 1) for m in (module.key, module.value))
    asking = _by_head(query, w_k).flatten(1, 2)
    scores = (asking @ hidden.transpose(1, 2)).view(*query.shape[:3], -1) + query @ b_k
    length = 0
    if prefix is not None:
        keys, values = per_window(prefix, hidden).to(dtype).unbind(1)
        scores, length = torch.cat([query @ keys.transpose(2, 3), scores], dim=-1), keys.shape[2]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(dim=-1)
    text = shares[..., length:]
    states = (text.flatten(1, 2) @ hidden).view(*query.shape[:3], -1)
    found = _by_head(states, w_v.transpose(1, 2)) + text.sum(dim=-1, keepdim=True) * b_v.transpose(1, 2)
    if prefix is not None:
        found = found + shares[..., :length] @ values
    attended: Tensor = found.transpose(1, 2)
    return attended


def _by_head(states: Tensor, weight: Tensor) -> Tensor:
    """``(B, heads, W, a)`` by ``(heads, a, b)``, to ``(B, heads, W, b)``."""
    product = states.transpose(0, 1).flatten(1, 2) @ weight
    return product.view(len(weight), len(states), -1, weight.shape[-1]).transpose(0, 1)


def project(layer: Any, hidden: Tensor, *names: str) -> tuple[Tensor, ...]:
    """Some of a layer's queries, keys and values, under autocast in the type of that.

    Args:
        layer: Hugging Face's layer, for which :func:`runs` holds.
        hidden: ``(..., H)`` at its input.
        names: Of ``query``, ``key`` and ``value``, in this order.

    Returns:
        ``(..., H)`` each.
    """
    modules = [getattr(layer.attention.self, name) for name in names]
    return _product(_type_of_products(hidden), *modules)(hidden).chunk(len(names), dim=-1)


def _type_of_products(hidden: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype


def finish(layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
    """A layer from what its attention found to its output, sums and norms in the type of ``hidden``.

    Args:
        layer: Hugging Face's layer, for which :func:`runs` holds.
        attended: ``(..., H)`` before the output projection.
        hidden: ``(..., H)`` at the layer's input.
    """
    dtype = _type_of_products(attended)
    output, wide, narrow = _linears(layer)[3:]
    middle = layer.attention.output.LayerNorm(_product(dtype, output)(attended) + hidden)
    activated = _activated(layer, _product(dtype, wide), middle)
    found: Tensor = layer.output.LayerNorm(_product(dtype, narrow)(activated) + middle)
    return found


def _heads(module: Any, states: Tensor, parts: int) -> tuple[Tensor, ...]:
    """``(B, T, parts * H)`` to ``parts`` times ``(B, heads, T, head size)``."""
    apart = states.view(*states.shape[:2], parts, -1, module.attention_head_size)
    return apart.transpose(1, 3).unbind(2)


def _activated(layer: Any, wide: _Product, middle: Tensor) -> Tensor:
    """The wide part of the feed-forward network."""
    activation = layer.intermediate.intermediate_act_fn
    if isinstance(activation, GELUActivation) and not (middle.requires_grad and torch.is_grad_enabled()):
        return wide.product(middle, "gelu")
    found: Tensor = activation(wide(middle))
    return found


def at(hidden: Tensor, picks: Tensor) -> Tensor:
    """States ``(B, T, H)`` at picked tokens, ``(B, W, H)``."""
    return hidden.gather(1, picks[..., None].expand(-1, -1, hidden.shape[-1]))
