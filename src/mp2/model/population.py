"""Span logits of many candidate prompts over the same windows, without repeating what no candidate changes.

A black-box search asks one question thousands of times: the same rows, another prompt in layer l. So

- windows lie end to end on one token axis, without padding, and all candidates share one forward;
- hidden states at the input of every layer are kept; moving to another layer runs only what changed below;
- in layer l the text's queries, keys and values belong to no candidate and are projected once. What the text
  gives to itself there is kept too, and merged exactly with the P keys of a prompt by its log-sum-exp;
- in the last layer only tokens whose logits are read have queries; when they are few, the other tokens need
  no keys and values either.

The layers stay Hugging Face's own modules; their parts are called one by one. Decides nothing about losses
(``mp2.tuning.objective``). Axes: N candidates, S tokens of all windows end to end, P prompt length, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch
from mp2.errors import ConfigError
from mp2.model.bank import Injection
from mp2.model.flat_attention import absorb, attend, heads, merge, scale
from mp2.model.mrc import MRCModel

CPU_TOKENS = 2048  # the feed-forward of one piece then stays in a core's cache
GPU_TOKENS = 1 << 18


@dataclass(frozen=True, slots=True)
class _Part:
    """Some neighbouring windows, which run together.

    Attributes:
        rows: Their tokens among all S.
        picks: Their picked tokens among all picked ones.
        windows: Tokens ``[from, to)`` of each window within the part.
        picked: Picked tokens ``[from, to)`` of each window within the part's picked ones.
        pick: Place of each picked token within the part.
        slots: Place of each prompt slot within the part.
    """

    rows: slice
    picks: slice
    windows: list[tuple[int, int]]
    picked: list[tuple[int, int]]
    pick: Tensor
    slots: Tensor


@dataclass(slots=True)
class _Kept:
    """What no candidate of the searched layer changes, for all S tokens (queries: those the layer needs)."""

    query: Tensor
    key: Tensor
    value: Tensor
    own: Tensor | None = None
    weight: Tensor | None = None


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
        ids, mask, slots = batch.ids, batch.mask, 0
        if injection == "add":
            ids, mask = backbone.with_slots(ids, mask, length)
            wanted = torch.cat([wanted[:, :1], wanted.new_zeros(len(ids), length), wanted[:, 1:]], dim=1)
            slots = length
        self._sizes: list[int] = mask.sum(dim=1).tolist()
        self._picks = wanted[mask].nonzero()[:, 0]
        # where a picked token stands in the (B, T) of the batch, which has no slots
        column = (wanted & mask).nonzero()
        self._place = column[:, 0] * batch.ids.shape[1] + (column[:, 1] - slots * (column[:, 1] > 0))
        with torch.inference_mode():
            self._inputs = [backbone.embed(ids)[mask]]
        self._below: list[Tensor] = []
        self._cut: dict[int, list[_Part]] = {}
        self.layer = 0
        self._fixed: list[Tensor | None] = []
        self._kept: _Kept | None = None

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
            entering = self._entering(prompt)
            parts = [self._first(entering, part)[0] for part in self._parts(1)]
            self._inputs.append(torch.cat(parts))
            self._below.append(prompt.clone())
        self._begin(layer)

    def _begin(self, layer: int) -> None:
        self.layer = layer
        module = self._attention(layer)
        hidden = self._inputs[layer]
        asking = hidden[self._picks] if self._is_last(layer) else hidden
        self._kept = _Kept(module.query(asking), module.key(hidden), module.value(hidden))
        if self.injection == "prefix":
            self._keep_own(module)

    def _keep_own(self, module: Any) -> None:
        """What each query takes from its own window, and the log-sum-exp of its logits there."""
        kept = self._kept
        assert kept is not None
        query, key, value = (heads(module, x) for x in (kept.query, kept.key, kept.value))
        own, weight = torch.empty_like(query), query.new_empty(query.shape[:-1])
        for part in self._parts(1):
            queries, asking = self._asking(part)
            for (a, b), (c, d) in zip(part.windows, asking, strict=True):
                rows = slice(part.rows.start + a, part.rows.start + b)
                some = slice(queries.start + c, queries.start + d)
                scores = query[:, some] @ key[:, rows].transpose(-1, -2) * scale(module)
                weight[:, some] = scores.logsumexp(dim=-1)
                own[:, some] = scores.softmax(dim=-1) @ value[:, rows]
        kept.own, kept.weight = own, weight

    def _asking(self, part: _Part) -> tuple[slice, list[tuple[int, int]]]:
        """Queries of the searched layer: the part's among all, and each window's within the part."""
        return (part.picks, part.picked) if self._is_last(self.layer) else (part.rows, part.windows)

    @torch.inference_mode()
    def __call__(self, prompts: Tensor) -> Tensor:
        """Logits of every candidate.

        Args:
            prompts: ``(N, J, P, H)`` prompts of the layers from the searched one on; layers beyond the J have
                the prompts that ``begin`` was given.

        Returns:
            ``(N, B, T, 2)``; -inf where no logit was wanted.
        """
        assert self._kept is not None, "begin comes first"
        windows, width = self.batch.ids.shape
        logits = prompts.new_full((len(prompts), windows * width, 2), float("-inf"))
        block = max(1, self.tokens // max(self._sizes))
        for at in range(0, len(prompts), block):
            some = prompts[at : at + block]
            entering, above = self._entering(some[:, 0]), self._above(some)
            for part in self._parts(len(some)):
                hidden = self._upwards(entering, above, part)
                logits[at : at + block, self._place[part.picks]] = self.model.head(hidden).to(logits.dtype)
        return logits.view(len(prompts), windows, width, 2)

    def _above(self, prompts: Tensor) -> list[Any]:
        """For each layer above the searched one: keys and values of its prompts, or the prompts, or None."""
        above: list[Any] = []
        for index in range(self.layer + 1, self.model.backbone.depth):
            step = index - self.layer
            prompt = prompts[:, step] if step < prompts.shape[1] else self._fixed[index]
            if prompt is not None and self.injection == "prefix" and not self._absorbs(index):
                module = self._attention(index)
                above.append((heads(module, module.key(prompt)), heads(module, module.value(prompt))))
            else:
                above.append(prompt)
        return above

    def _entering(self, prompt: Tensor) -> Any:
        """Prompts of the searched layer ``(N, P, H)``: their keys and values, or themselves as slots."""
        if self.injection == "add":
            return prompt
        module = self._attention(self.layer)
        return heads(module, module.key(prompt)), heads(module, module.value(prompt))

    def _upwards(self, entering: Any, above: list[Any], part: _Part) -> Tensor:
        """Last hidden states of a part's picked tokens ``(N, picks, H)``."""
        hidden = self._first(entering, part)
        for index, extra in enumerate(above, start=self.layer + 1):
            hidden = self._next(index, hidden, extra, part)
        return hidden

    def _first(self, entering: Any, part: _Part) -> Tensor:
        """The searched layer: what enters it to ``(N, s, H)``, picked tokens when it is last."""
        kept, module = self._kept, self._attention(self.layer)
        assert kept is not None
        last = self._is_last(self.layer)
        queries, asking = self._asking(part)
        hidden = self._inputs[self.layer][part.rows]
        if self.injection == "prefix":
            assert kept.own is not None and kept.weight is not None
            attended = merge(
                module,
                heads(module, kept.query[queries]),
                kept.own[:, queries],
                kept.weight[:, queries],
                *entering,
            )
            return self._finish(self.layer, attended, hidden[part.pick] if last else hidden)
        slots = hidden[part.slots] + entering.repeat(1, len(part.windows), 1)
        key = _with_slots(kept.key[part.rows], module.key(slots), part.slots)
        value = _with_slots(kept.value[part.rows], module.value(slots), part.slots)
        if last:
            query = kept.query[queries].expand(len(entering), -1, -1)
            attended = attend(module, query, key, value, part.windows, asking)
            return self._finish(self.layer, attended, hidden[part.pick])
        query = _with_slots(kept.query[queries], module.query(slots), part.slots)
        attended = attend(module, query, key, value, part.windows, asking)
        return self._finish(self.layer, attended, _with_slots(hidden, slots, part.slots))

    def _next(self, index: int, hidden: Tensor, extra: Any, part: _Part) -> Tensor:
        """A layer above the searched one, on hidden states ``(N, s, H)`` that may be changed in place."""
        module = self._attention(index)
        prefix = extra if self.injection == "prefix" else None
        if extra is not None and self.injection == "add":
            hidden[:, part.slots] += extra.repeat(1, len(part.windows), 1)
        if self._absorbs(index):
            asked = hidden[:, part.pick]
            attended = absorb(module, module.query(asked), hidden, part.windows, part.picked, prefix)
            return self._finish(index, attended, asked)
        key, value = module.key(hidden), module.value(hidden)
        asking = part.windows
        if self._is_last(index):
            hidden, asking = hidden[:, part.pick], part.picked
        attended = attend(module, module.query(hidden), key, value, part.windows, asking, prefix)
        return self._finish(index, attended, hidden)

    def _finish(self, index: int, attended: Tensor, hidden: Tensor) -> Tensor:
        """Output projection, residuals, norms and feed-forward of a layer."""
        layer: Any = self.model.backbone.layers[index]
        middle = layer.attention.output(attended, hidden)
        output: Tensor = layer.output(layer.intermediate(middle), middle)
        return output

    def _attention(self, index: int) -> Any:
        layer: Any = self.model.backbone.layers[index]
        return layer.attention.self

    def _absorbs(self, index: int) -> bool:
        """Whether so few tokens of the last layer are read that keys and values need not be projected."""
        asked = len(self._picks) / len(self._sizes) * self.model.backbone.config.num_attention_heads
        return self._is_last(index) and 2 * asked <= self.model.backbone.hidden_size

    def _is_last(self, index: int) -> bool:
        return index == self.model.backbone.depth - 1

    def _parts(self, candidates: int) -> list[_Part]:
        """Runs of windows whose tokens, times the candidates, fit the budget; at least one window each."""
        if candidates not in self._cut:
            parts: list[_Part] = []
            start = 0
            while start < len(self._sizes):
                stop, size = start + 1, self._sizes[start]
                while stop < len(self._sizes) and (size + self._sizes[stop]) * candidates <= self.tokens:
                    size += self._sizes[stop]
                    stop += 1
                parts.append(self._part(start, stop))
                start = stop
            self._cut[candidates] = parts
        return self._cut[candidates]

    def _part(self, start: int, stop: int) -> _Part:
        """The windows ``[start, stop)``."""
        ends = list(accumulate(self._sizes, initial=0))
        edges = torch.tensor(ends[start : stop + 1], device=self._picks.device)
        cuts = torch.searchsorted(self._picks, edges).tolist()
        picks = slice(cuts[0], cuts[-1])
        slots = (edges[:-1] - edges[0])[:, None] + torch.arange(1, self.length + 1, device=edges.device)
        return _Part(
            slice(ends[start], ends[stop]),
            picks,
            _pairs([end - ends[start] for end in ends[start : stop + 1]]),
            _pairs([cut - cuts[0] for cut in cuts]),
            self._picks[picks] - ends[start],
            slots.reshape(-1),
        )


def _pairs(edges: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(edges))


def _with_slots(kept: Tensor, slots: Tensor, where: Tensor) -> Tensor:
    """``(s, H)`` for every candidate, with the slots' own ``(N, W*P, H)`` in place: ``(N, s, H)``."""
    out = kept.expand(len(slots), -1, -1).clone()
    out[:, where] = slots
    return out
