"""Windows of several rows, perhaps of several tasks, as one padded batch.

A batch keeps ragged things flat: option spans, gold spans and windows point at their row. So rows may
have any number of windows and options, and no option ever exists that the data does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mp2.data.encode import Encoded, Window


@dataclass(frozen=True, slots=True)
class MRCBatch:
    """One batch of B windows that belong to R rows.

    Attributes:
        ids: ``(B, T)`` token ids, right-padded.
        mask: ``(B, T)`` bool, True on real tokens.
        window_row: ``(B,)`` row of each window.
        prompt: ``(R,)`` which prompt (task) each row uses, an index into the prompts of the forward.
        options: ``(S, 3)`` window, first and last token of each option.
        option_row: ``(S,)`` row of each option.
        option_index: ``(S,)`` index of each option within its row.
        token_option: ``(B, T)`` index of the option that a token is part of; -1 where it is of none.
        option_offset: ``(S,)`` what is added to the score of each option (``mp2.model.label_offsets``).
        context: ``(B, 2)`` first and last token of the searchable context; -1 where there is none.
        no_answer: ``(B, 2)`` span of the words that mean "no answer"; -1 where there are none.
        gold: ``(G, 3)`` window, first and last token of gold spans; a row may have several or none.
        answer: ``(R,)`` index of the right option; -1 where unknown or for span tasks.
        asked: ``(B, W)`` tokens that decide between options, the first and last of each; -1 fills up. W is 0
            where a window has no options, so that all its tokens decide.
        rows: R.
        known: How many rows have a gold answer; known without asking the device.
        full: Whether no window is padded; likewise.
    """

    ids: Tensor
    mask: Tensor
    window_row: Tensor
    prompt: Tensor
    options: Tensor
    option_row: Tensor
    option_index: Tensor
    token_option: Tensor
    option_offset: Tensor
    context: Tensor
    no_answer: Tensor
    gold: Tensor
    answer: Tensor
    asked: Tensor
    rows: int
    known: int
    full: bool

    def to(self, device: torch.device | str) -> MRCBatch:
        """The same batch on a device."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in every.items() if isinstance(value, Tensor)}
        if torch.device(device).type == "cuda":  # only from pinned memory does a copy not hold up the host
            tensors = {name: t if t.is_cuda else t.pin_memory() for name, t in tensors.items()}
        moved: dict[str, Any] = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
        return replace(self, **moved)


def collate(
    rows: Sequence[Encoded],
    prompts: Sequence[int] | int = 0,
    *,
    pad_id: int = 0,
    offsets: Sequence[Sequence[float]] | None = None,
) -> MRCBatch:
    """Put encoded rows into one batch.

    Args:
        rows: R encoded rows.
        prompts: Which prompt each row uses, or one index for all.
        pad_id: Token id of padding.
        offsets: Of each task that ``prompts`` tells apart what is added to the scores of its options; empty
            for none.
    """
    chosen = [prompts] * len(rows) if isinstance(prompts, int) else list(prompts)
    windows = [(r, window) for r, row in enumerate(rows) for window in row.windows]
    width = max(len(window.ids) for _, window in windows)
    ids = np.full((len(windows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(windows), width), dtype=bool)
    token_option = np.full((len(windows), width), -1, dtype=np.int64)
    nowhere = (-1, -1)
    options, option_row, option_index, option_offset, gold = [], [], [], [], []
    for b, (r, window) in enumerate(windows):
        added = offsets[chosen[r]] if offsets else ()
        ids[b, : len(window.ids)] = window.ids
        mask[b, : len(window.ids)] = True
        for index, first, last in window.options:
            options.append((b, first, last))
            token_option[b, first : last + 1] = index
            option_row.append(r)
            option_index.append(index)
            option_offset.append(added[index] if added else 0.0)
        if window.gold is not None:
            gold.append((b, *window.gold))
    return MRCBatch(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        window_row=torch.tensor([r for r, _ in windows]),
        prompt=torch.tensor(chosen, dtype=torch.long),
        options=torch.tensor(options, dtype=torch.long).reshape(-1, 3),
        option_row=torch.tensor(option_row, dtype=torch.long),
        option_index=torch.tensor(option_index, dtype=torch.long),
        token_option=torch.from_numpy(token_option),
        option_offset=torch.tensor(option_offset),
        context=torch.tensor([window.context or nowhere for _, window in windows]).reshape(-1, 2),
        no_answer=torch.tensor([window.no_answer or nowhere for _, window in windows]).reshape(-1, 2),
        gold=torch.tensor(gold, dtype=torch.long).reshape(-1, 3),
        answer=torch.tensor([-1 if row.answer is None else row.answer for row in rows], dtype=torch.long),
        asked=_asked([window for _, window in windows]),
        rows=len(rows),
        known=len({windows[b][0] for b, _, _ in gold}),
        full=bool(mask.all()),
    )


def _asked(windows: Sequence[Window]) -> Tensor:
    """``(B, W)`` first and last tokens of each window's options, -1 beyond; W = 0 where one has none."""
    found = [sorted({t for _, *span in window.options for t in span}) for window in windows]
    width = max(map(len, found)) if all(found) else 0
    filled = [(tokens + [-1] * width)[:width] for tokens in found]
    return torch.tensor(filled, dtype=torch.long).reshape(len(found), width)


def row_tokens(row: Encoded) -> int:
    """Tokens of a row, all its windows together, each as long as the longest."""
    return len(row.windows) * max(len(window.ids) for window in row.windows)


def start_cost(device: torch.device | str) -> int:
    """What a forward costs before its first token, in tokens; a card's memory asks for full batches."""
    return 64 if torch.device(device).type == "cpu" else 0


def length_batches(
    lengths: Sequence[int], *, tokens: int, rows: int = 1 << 30, start: int = 0
) -> Iterator[list[int]]:
    """Group indices by length so that little is padding; longest first, so memory peaks at once.

    Args:
        lengths: Tokens of each row.
        tokens: Padded tokens a batch may hold (a longer row gets a batch of its own).
        rows: Rows a batch may hold.
        start: What starting a batch costs beside its tokens, in tokens. Batches are then cut where padding
            and starts together cost least; with 0 each is filled as far as it goes.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if start:
        yield from _cheapest(order, [lengths[i] for i in order], tokens, rows, start)
        return
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1 > rows or (len(group) + 1) * lengths[group[0]] > tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _cheapest(
    order: Sequence[int], lengths: Sequence[int], tokens: int, rows: int, start: int
) -> Iterator[list[int]]:
    """``order`` in pieces; lengths fall. The least cost of the rows from each place on, found backwards."""
    cost, piece = [0] * (len(order) + 1), [0] * len(order)
    for first in range(len(order) - 1, -1, -1):
        most = min(rows, len(order) - first, max(1, tokens // max(1, lengths[first])))
        cost[first], piece[first] = min(
            (start + count * lengths[first] + cost[first + count], count) for count in range(1, most + 1)
        )
    first = 0
    while first < len(order):
        yield list(order[first : first + piece[first]])
        first += piece[first]
