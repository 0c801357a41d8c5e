"""From start and end logits to a loss, option scores and answer spans.

All of it is by row: a row's windows are scored together, with one softmax over the positions of all of
them, so 119 labels over three windows, or a long text in ten, compete as if they stood in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch
from mp2.model.answer_length import AnswerLength

Loss = Literal["span", "option"]


def by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Log-sum-exp of ``values (N,)`` within each of ``count`` rows; -inf for a row without values."""
    top = values.new_full((count,), float("-inf")).scatter_reduce(0, rows, values.detach(), "amax")
    safe = torch.where(top.isfinite(), top, torch.zeros_like(top))
    total = values.new_zeros(count).index_add(0, rows, (values - safe[rows]).exp())
    return total.log() + safe


def log_probs(logits: Tensor, batch: MRCBatch) -> Tensor:
    """``(B, T, 2)`` logits to start and end log-probabilities over each row's real tokens."""
    logits = logits.float().masked_fill(~batch.mask[..., None], float("-inf"))
    per_window = torch.logsumexp(logits, dim=1)
    norm = torch.stack([by_row(per_window[:, i], batch.window_row, batch.rows) for i in (0, 1)], dim=-1)
    return logits - norm[batch.window_row][:, None]


def row_losses(logits: Tensor, batch: MRCBatch, kind: Loss = "span") -> tuple[Tensor, Tensor]:
    """Loss of each row.

    ``span``: half of start plus end cross-entropy over all tokens of the row (paper's loss); where a row has
    several gold spans, their total probability counts. ``option``: cross-entropy over the row's options, each
    with the sum of its start and end scores; rows without options keep ``span``.

    Args:
        logits: ``(B, T, 2)``.
        batch: The batch they came from.
        kind: Which loss rows with options get.

    Returns:
        Losses ``(R,)`` and a bool mask ``(R,)`` of the rows that have a gold answer (others are 0).
    """
    scores = log_probs(logits, batch)
    window, first, last = batch.gold.unbind(1)
    rows = batch.window_row[window]
    start = by_row(scores[window, first, 0], rows, batch.rows)
    end = by_row(scores[window, last, 1], rows, batch.rows)
    known = torch.zeros(batch.rows, dtype=torch.bool, device=logits.device).index_fill(0, rows, True)
    losses = -(start + end) / 2
    if kind == "option" and len(batch.options):
        picked = option_scores(logits, batch)
        norm = by_row(picked, batch.option_row, batch.rows)
        right = batch.option_index == batch.answer[batch.option_row]
        chosen = losses.new_zeros(batch.rows).index_add(0, batch.option_row, picked * right)
        losses = torch.where(batch.answer >= 0, norm - chosen, losses)
    return torch.where(known, losses, torch.zeros_like(losses)), known


def option_scores(logits: Tensor, batch: MRCBatch) -> Tensor:
    """Score of every option in the batch, ``(S,)``: its start's and end's log-probability, and its offset.

    The released code multiplies raw logits instead, so that two negative ones make a high score.
    """
    window, first, last = batch.options.unbind(1)
    scores = log_probs(logits, batch)
    return scores[window, first, 0] + scores[window, last, 1] + batch.option_offset


def option_log_probs(logits: Tensor, batch: MRCBatch) -> list[Tensor]:
    """Per row, log-probabilities of its options in order; empty for rows without options."""
    picked = option_scores(logits, batch)
    norm = by_row(picked, batch.option_row, batch.rows)
    normalised = (picked - norm[batch.option_row]).cpu()
    order, index = batch.option_row.cpu(), batch.option_index.cpu()
    counts = torch.bincount(order, minlength=batch.rows).tolist()
    result = [torch.full((count,), float("-inf")) for count in counts]
    for row, option, value in zip(order.tolist(), index.tolist(), normalised, strict=True):
        result[row][option] = value
    return result


@dataclass(frozen=True, slots=True)
class SpanAnswer:
    """Best span of a row: window in the batch, tokens (inclusive; None: no answer), log-probability."""

    window: int
    tokens: tuple[int, int] | None
    log_prob: float


def best_spans(
    logits: Tensor,
    batch: MRCBatch,
    lengths: Sequence[AnswerLength | None] | None = None,
    *,
    max_tokens: int = 64,
) -> list[SpanAnswer]:
    """Best answer span of each row: start <= end, inside the context, of at most ``max_tokens`` tokens.

    Spans compete by start and end log-probability and, where it is known how long a task's answers are, by
    the log density of their length. Where the text offers the words "no answer", they compete with the best
    span, by start and end alone.

    Args:
        logits: ``(B, T, 2)``.
        batch: The batch they came from.
        lengths: Length of the answers of the N tasks that ``batch.prompt`` tells apart, where it is known.
        max_tokens: Length limit of an answer.
    """
    scores = log_probs(logits, batch)
    windows, width = batch.ids.shape
    token = torch.arange(width, device=logits.device)
    inside = (token >= batch.context[:, :1]) & (token <= batch.context[:, 1:]) & (batch.context[:, :1] >= 0)
    start = scores[..., 0].masked_fill(~inside, float("-inf"))
    end = scores[..., 1].masked_fill(~inside, float("-inf"))
    reach = min(max_tokens, width)
    padded = torch.cat([end, end.new_full((windows, reach - 1), float("-inf"))], dim=1)
    ends = padded.unfold(1, reach, 1)  # (B, T, reach): end scores of the tokens from here on
    if lengths is not None:
        unknown = end.new_zeros(reach)
        known = torch.stack([one.log_shares(reach, end.device) if one else unknown for one in lengths])
        ends = ends + known[batch.prompt[batch.window_row]][:, None]
    best_end, offset = ends.max(dim=2)
    total, first = (start + best_end).max(dim=1)
    last = first + offset.gather(1, first[:, None])[:, 0]
    index = torch.arange(windows, device=logits.device)
    plain = start[index, first] + end[index, last.clamp_max(width - 1)]
    return _pick(scores, batch, total.tolist(), plain.tolist(), first.tolist(), last.tolist())


def _pick(
    scores: Tensor,
    batch: MRCBatch,
    total: Sequence[float],
    plain: Sequence[float],
    first: Sequence[int],
    last: Sequence[int],
) -> list[SpanAnswer]:
    """The best of each row's windows by ``total``, unless "no answer" beats its ``plain`` score."""
    offered = batch.no_answer[:, 0] >= 0
    index = torch.arange(len(scores), device=scores.device)
    at = batch.no_answer.clamp_min(0)
    nothing = (scores[index, at[:, 0], 0] + scores[index, at[:, 1], 1]).masked_fill(~offered, float("-inf"))
    leading = [float("-inf")] * batch.rows
    best = [SpanAnswer(0, None, float("-inf"))] * batch.rows
    rows = batch.window_row.tolist()
    for b, row in enumerate(rows):
        if total[b] > leading[row]:
            leading[row], best[row] = total[b], SpanAnswer(b, (first[b], last[b]), plain[b])
    for b, row in enumerate(rows):
        if float(nothing[b]) > best[row].log_prob:
            best[row] = SpanAnswer(b, None, float(nothing[b]))
    return best
