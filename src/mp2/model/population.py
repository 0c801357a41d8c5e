"""Span logits of many candidate prompts over the same windows, without repeating what no candidate changes.

A black-box search asks one question thousands of times: the same rows, another prompt in layer l. So

- windows lie end to end on one token axis, without padding, and all candidates share one forward;
- hidden states at the input of every layer are kept; moving to another layer runs only what changed below;
- in layer l the text's queries, keys and values belong to no candidate and are projected once. What the text
  gives to itself there is kept too, and merged exactly with the P keys of a prompt by its log-sum-exp;
- before layer 0 a prompt's slots are the same in all windows, so their projections are a candidate's, not a
  window's;
- in the last layer only tokens whose logits are read have queries; when they are few, the other tokens need
  no keys and values either;
- the axis is cut into pieces, which run side by side on a processor's cores (``mp2.model.lanes``).

The layers stay Hugging Face's own modules, whose parts are called one by one, or in the quicker form that
``mp2.model.frozen`` has for them. Decides nothing about losses
(``mp2.tuning.objective``). Axes: N candidates, M tokens of all windows end to end, P prompt length, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch
from mp2.errors import ConfigError
from mp2.model import frozen
from mp2.model.bank import Injection, slots_of
from mp2.model.flat_attention import absorb, attend, heads, join, merge, scale
from mp2.model.lanes import lanes_for, side_by_side
from mp2.model.mrc import MRCModel
from mp2.model.windows import Edges, Piece, Windows

CPU_TOKENS = 2048  # enough for quick products, and a generation is still dozens of pieces to share out
GPU_TOKENS = 1 << 18


@dataclass(slots=True)
class _Kept:
    """What no candidate of the searched layer changes, for all M tokens (queries: those the layer needs)."""

    query: Tensor
    key: Tensor
    value: Tensor
    own: Tensor
    weight: Tensor


class Population:
    """Forward of candidate prompts over one set of windows, from the layer that is being searched.

    Args:
        model: Encoder and head, left as they are.
        batch: The windows, on the model's device.
        length: P.
        wanted: ``(B, T)`` bool, tokens whose logits are read.
        injection: How prompts enter a layer.
        tokens: Tokens a piece of the forward may hold, over all its candidates; by the device when None.
    """

    def __init__(
        self,
        model: MRCModel,
        batch: MRCBatch,
        length: int,
        wanted: Tensor,
        injection: Injection = "prefix",
        *,
        tokens: int | None = None,
    ) -> None:
        self.model, self.batch, self.injection, self.length = model.eval(), batch, injection, length
        self.tokens = tokens or (GPU_TOKENS if batch.ids.is_cuda else CPU_TOKENS)
        backbone = model.backbone
        self._lanes, self._frozen = 1, all(frozen.runs(layer) for layer in backbone.layers)
        with torch.inference_mode():
            if injection == "add":
                ids, mask = backbone.with_slots(batch.ids, batch.mask, length)
                hidden, mask = (_slots_first(x, length) for x in (backbone.embed(ids), mask))
                wanted = torch.cat([wanted.new_zeros(len(ids), length), wanted], dim=1)
            else:
                hidden, mask = backbone.embed(batch.ids), batch.mask
            self._inputs = [hidden[mask]]
        slots = slots_of(injection, length)
        self._picks = wanted[mask].nonzero()[:, 0]
        self._windows = Windows(mask.sum(dim=1).tolist(), self._picks, slots)
        # where a picked token stands in the (B, T) of the batch, which has no slots
        column = (wanted & mask).nonzero()
        self._place = column[:, 0] * batch.ids.shape[1] + column[:, 1] - slots
        self._below: list[Tensor] = []
        self.layer = 0
        self._fixed: list[Tensor | None] = []
        self._kept: _Kept | None = None
        self._kept_first: _Kept | None = None

    @torch.inference_mode()
    def begin(self, layer: int, prompts: Tensor) -> None:
        """Choose the searched layer and compute what its candidates have in common.

        Args:
            layer: l; candidates change the prompts from this layer up.
            prompts: ``(1, L, P, H)`` current prompts (L = 1 for shallow banks). Those below ``layer`` decide
                its input; those above are used where a candidate brings none.
        """
        depth = self.model.backbone.depth
        if not 0 <= layer < prompts.shape[1]:
            raise ConfigError(f"layer {layer}: the bank has prompts in layers 0 to {prompts.shape[1] - 1}")
        self._fixed = [prompts[:, i] if i < prompts.shape[1] else None for i in range(depth)]
        same = 0
        while same < len(self._below) and torch.equal(self._below[same], prompts[:, same]):
            same += 1
        del self._inputs[same + 1 :], self._below[same:]
        for index in range(len(self._below), layer):
            prompt = prompts[:, index]
            self._begin(index)
            self._inputs.append(self._leaving(prompt))
            self._below.append(prompt.clone())
        self._begin(layer)

    def _begin(self, layer: int) -> None:
        """Keep what the candidates of a layer have in common."""
        self.layer = layer
        self._lanes = lanes_for(self._picks.device)
        if layer == 0 and self._kept_first is not None:
            self._kept = self._kept_first
            return
        module = self._attention(layer)
        hidden = self._inputs[layer]
        query, key, value = self._project(layer, hidden, "query", "key", "value")
        query = query[self._picks] if self._is_last(layer) else query
        own = torch.empty_like(heads(module, query), memory_format=torch.contiguous_format)
        self._kept = _Kept(query, key, value, own, hidden.new_empty(own.shape[:-1]))
        pieces = self._windows.pieces(1, self.tokens, self._lanes)
        side_by_side((partial(self._keep_own, piece) for piece in pieces), self._lanes)
        if layer == 0:
            self._kept_first = self._kept

    def _keep_own(self, piece: Piece) -> None:
        """What each query takes from the text of its own window, and the log-sum-exp of its logits there."""
        kept, module = self._common, self._attention(self.layer)
        query, key, value = (heads(module, x) for x in (kept.query, kept.key, kept.value))
        queries, asking = self._asking(piece)
        for (a, b), (c, d) in zip(piece.windows, asking, strict=True):
            text = slice(piece.rows.start + a + self._windows.slots, piece.rows.start + b)
            some = slice(queries.start + c, queries.start + d)
            scores = (query[:, some] @ key[:, text].transpose(-1, -2)).to(kept.weight.dtype) * scale(module)
            kept.weight[:, some] = scores.logsumexp(dim=-1)
            kept.own[:, some] = scores.softmax(dim=-1) @ value[:, text]

    def _leaving(self, prompt: Tensor) -> Tensor:
        """The searched layer's output ``(M, H)`` for one prompt ``(1, P, H)``."""
        found, entering = torch.empty_like(self._inputs[self.layer]), self._entering(prompt)

        def run(piece: Piece) -> None:
            found[piece.rows] = self._first(entering, piece)[0]

        pieces = self._windows.pieces(1, self.tokens, self._lanes)
        side_by_side((partial(run, piece) for piece in pieces), self._lanes)
        return found

    @property
    def _common(self) -> _Kept:
        assert self._kept is not None, "begin comes first"
        return self._kept

    def _asking(self, piece: Piece) -> tuple[slice, Edges]:
        """Queries of the searched layer: the piece's among all, and each window's within the piece."""
        return (piece.picks, piece.picked) if self._is_last(self.layer) else (piece.rows, piece.windows)

    @torch.inference_mode()
    def __call__(self, prompts: Tensor) -> Tensor:
        """Logits of every candidate.

        Args:
            prompts: ``(N, J, P, H)`` prompts of the layers from the searched one on; layers beyond the J have
                the prompts that ``begin`` was given.

        Returns:
            ``(N, B, T, 2)``; -inf where no logit was wanted.
        """
        windows, width = self.batch.ids.shape
        logits = prompts.new_full((len(prompts), windows * width, 2), float("-inf"))
        self._lanes = lanes_for(self._picks.device)
        side_by_side(self._work(prompts, logits), self._lanes)
        return logits.view(len(prompts), windows, width, 2)

    def _work(self, prompts: Tensor, logits: Tensor) -> Iterator[Callable[[], None]]:
        """Pieces of the forward: some candidates with some windows, whose logits each puts in their place."""
        most = max(1, self.tokens // max(self._windows.sizes))
        blocks = -(-len(prompts) // most)
        for some, found in zip(prompts.chunk(blocks), logits.chunk(blocks), strict=True):
            entering, above = self._entering(some[:, 0]), self._above(some)
            for piece in self._windows.pieces(len(some), self.tokens, self._lanes):
                yield partial(self._upwards, entering, above, piece, found)

    def _above(self, prompts: Tensor) -> list[Any]:
        """For each layer above the searched one: keys and values of its prompts, or the prompts, or None."""
        above: list[Any] = []
        for index in range(self.layer + 1, self.model.backbone.depth):
            step = index - self.layer
            prompt = prompts[:, step] if step < prompts.shape[1] else self._fixed[index]
            if prompt is not None and self.injection == "prefix" and not self._absorbs(index):
                above.append(self._keys_of(index, prompt))
            else:
                above.append(prompt)
        return above

    def _entering(self, prompt: Tensor) -> Any:
        """Prompts of the searched layer ``(N, P, H)``: their keys and values, or themselves as slots."""
        return prompt if self.injection == "add" else self._keys_of(self.layer, prompt)

    def _keys_of(self, index: int, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(N, heads, P, size)`` of prompts ``(N, P, H)``."""
        module = self._attention(index)
        key, value = self._project(index, prompt, "key", "value")
        return heads(module, key), heads(module, value)

    def _upwards(self, entering: Any, above: list[Any], piece: Piece, logits: Tensor) -> None:
        """All layers from the searched one on; writes the logits of a piece's picked tokens."""
        hidden = self._first(entering, piece)
        for index, extra in enumerate(above, start=self.layer + 1):
            hidden = self._next(index, hidden, extra, piece)
        logits[:, self._place[piece.picks]] = self.model.head(hidden).to(logits.dtype)

    def _first(self, entering: Any, piece: Piece) -> Tensor:
        """The searched layer: what enters it to ``(N, s, H)``, picked tokens when it is last."""
        if self.injection == "add":
            return self._first_with_slots(entering, piece)
        kept, module = self._common, self._attention(self.layer)
        queries, _ = self._asking(piece)
        query = heads(module, kept.query[queries])
        attended = merge(module, query, kept.own[:, queries], kept.weight[:, queries], *entering)
        hidden = self._inputs[self.layer][piece.rows]
        return self._finish(self.layer, attended, hidden[piece.pick] if self._is_last(self.layer) else hidden)

    def _first_with_slots(self, prompt: Tensor, piece: Piece) -> Tensor:
        """The same where prompts ``(N, P, H)`` are added to slots, which are tokens of the layer."""
        kept, module, windows = self._common, self._attention(self.layer), len(piece.windows)
        hidden = self._inputs[self.layer][piece.rows]
        before = hidden[piece.slots].view(windows, self.length, -1)
        # before layer 0 all windows have the same slots
        slots = (before[:1] if self.layer == 0 else before) + prompt[:, None]  # (N, 1 or W, P, H)
        found = self._project(self.layer, slots, "query", "key", "value")
        query, key, value = (heads(module, x) for x in found)
        attended = self._merged(piece, key, value)
        if self._is_last(self.layer):
            return self._finish(self.layer, attended, hidden[piece.pick])
        text_key, text_value = (heads(module, x[piece.rows]) for x in (kept.key, kept.value))
        for w, (a, b) in enumerate(piece.windows):
            at, text = min(w, slots.shape[1] - 1), slice(a + self.length, b)
            attended[:, a : a + self.length] = join(
                module, query[:, at], key[:, at], value[:, at], text_key[:, text], text_value[:, text]
            )
        whole = hidden.expand(len(prompt), -1, -1).clone()
        whole[:, piece.slots] = slots.expand(-1, windows, -1, -1).flatten(1, 2)
        return self._finish(self.layer, attended, whole)

    def _merged(self, piece: Piece, key: Tensor, value: Tensor) -> Tensor:
        """What the text takes from itself and from slots, whose keys and values are per window or for all.

        Args:
            piece: The windows.
            key: ``(N, 1 or W, heads, P, size)``; ``value`` alike.
            value: See ``key``.

        Returns:
            ``(N, q, H)``; queries of slots are in it, but theirs is not what they see.
        """
        kept, module = self._common, self._attention(self.layer)
        queries, asking = self._asking(piece)
        query = heads(module, kept.query[queries])
        own, weight = kept.own[:, queries], kept.weight[:, queries]
        if key.shape[1] == 1:
            return merge(module, query, own, weight, key[:, 0], value[:, 0])
        parts = [
            merge(module, query[:, c:d], own[:, c:d], weight[:, c:d], key[:, w], value[:, w])
            for w, (c, d) in enumerate(asking)
        ]
        return torch.cat(parts, dim=1)

    def _next(self, index: int, hidden: Tensor, extra: Any, piece: Piece) -> Tensor:
        """A layer above the searched one, on hidden states ``(N, s, H)`` that may be changed in place."""
        module = self._attention(index)
        prefix = extra if self.injection == "prefix" else None
        if extra is not None and self.injection == "add":
            hidden[:, piece.slots] += extra.repeat(1, len(piece.windows), 1)
        if self._absorbs(index):
            asked = hidden[:, piece.pick]
            attended = absorb(module, module.query(asked), hidden, piece.windows, piece.picked, prefix)
            return self._finish(index, attended, asked)
        if self._is_last(index):
            key, value = self._project(index, hidden, "key", "value")
            hidden, asking = hidden[:, piece.pick], piece.picked
            (query,) = self._project(index, hidden, "query")
        else:
            query, key, value = self._project(index, hidden, "query", "key", "value")
            asking = piece.windows
        attended = attend(module, query, key, value, piece.windows, asking, prefix)
        return self._finish(index, attended, hidden)

    def _project(self, index: int, hidden: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Queries, keys or values of a layer, ``(..., H)`` each."""
        if self._frozen:
            return frozen.project(self.model.backbone.layers[index], hidden, *names)
        return tuple(getattr(self._attention(index), name)(hidden) for name in names)

    def _finish(self, index: int, attended: Tensor, hidden: Tensor) -> Tensor:
        """Output projection, residuals, norms and feed-forward of a layer."""
        layer: Any = self.model.backbone.layers[index]
        if self._frozen:
            return frozen.finish(layer, attended, hidden)
        middle = layer.attention.output(attended, hidden)
        output: Tensor = layer.output(layer.intermediate(middle), middle)
        return output

    def _attention(self, index: int) -> Any:
        layer: Any = self.model.backbone.layers[index]
        return layer.attention.self

    def _absorbs(self, index: int) -> bool:
        """Whether so few tokens of the last layer are read that keys and values need not be projected."""
        asked = len(self._picks) / len(self._windows.sizes) * self.model.backbone.config.num_attention_heads
        return self._is_last(index) and 2 * asked <= self.model.backbone.hidden_size

    def _is_last(self, index: int) -> bool:
        return index == self.model.backbone.depth - 1


def _slots_first(tokens: Tensor, length: int) -> Tensor:
    """``(B, P + T, ...)`` with the slots that stand behind the first token put before it."""
    return torch.cat([tokens[:, 1 : 1 + length], tokens[:, :1], tokens[:, 1 + length :]], dim=1)
