"""From rows to answers: batches by length, one forward each, and text by the offsets of the user's string."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mp2.data.batch import MRCBatch, collate, length_batches, row_tokens, start_cost
from mp2.data.encode import Encoded
from mp2.model.answer_length import AnswerLength
from mp2.model.bank import Injection
from mp2.model.label_offsets import LabelOffsets
from mp2.model.lanes import lanes_for, side_by_side
from mp2.model.mrc import Heads, MRCModel
from mp2.model.spans import SpanAnswer, best_spans, option_log_probs
from mp2.tasks.metrics import score
from mp2.tasks.render import MRCExample

EVAL_TOKENS = 8192
CPU_TOKENS = 2048  # a processor gains nothing from large batches


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to one row.

    Attributes:
        text: The chosen option, or the exact substring of the context; empty for "no answer".
        probability: Probability of the answer, in [0, 1].
        option: Index of the chosen option, or None for span tasks.
        options: Probability of each option; empty for span tasks.
        span: ``[start, end)`` characters of the context; None for options and for "no answer".
    """

    text: str
    probability: float
    option: int | None = None
    options: tuple[float, ...] = ()
    span: tuple[int, int] | None = None


@torch.no_grad()
def answer_rows(
    model: MRCModel,
    rows: Sequence[Encoded],
    contexts: Sequence[str],
    options: Sequence[Sequence[str]],
    prompts: Tensor | None = None,
    which: Sequence[int] | int = 0,
    *,
    injection: Injection = "prefix",
    heads: Heads | None = None,
    labels: Tensor | None = None,
    lengths: Sequence[AnswerLength | None] | None = None,
    offsets: Sequence[LabelOffsets] | None = None,
    tokens: int | None = None,
) -> list[Answer]:
    """Answer rows, which may belong to different tasks.

    Args:
        model: Encoder and head.
        rows: Encoded rows.
        contexts: Context text of each row (used by span tasks).
        options: Option texts of each row (empty for span tasks).
        prompts: ``(N, L, P, H)`` composed prompts, or what :meth:`Backbone.prefix_states` made of them; or
            None.
        which: Prompt (and head) of each row, or one index for all.
        injection: How prompts enter a layer.
        heads: Span heads of the N tasks; the model's own for all when None.
        labels: ``(N, C, H)`` vectors of their label words; None for none.
        lengths: Length of the answers of the N tasks, where it is known.
        offsets: What is added to the scores of the labels of the N tasks; empty for none.
        tokens: Padded tokens a forward may hold; what suits the device when None.
    """
    model.eval()
    device = next(model.parameters()).device
    chosen = [which] * len(rows) if isinstance(which, int) else list(which)
    answers: list[Answer | None] = [None] * len(rows)
    budget = tokens or (CPU_TOKENS if device.type == "cpu" else EVAL_TOKENS)

    def ask(group: Sequence[int]) -> None:
        used = sorted({chosen[i] for i in group})
        place = {index: n for n, index in enumerate(used)}
        batch = collate(
            [rows[i] for i in group],
            [place[chosen[i]] for i in group],
            offsets=offsets and [offsets[index] for index in used],
        ).to(device)
        logits = model(
            batch,
            prompts if prompts is None or len(used) == len(prompts) else prompts[used],
            injection,
            heads and (heads[0][used], heads[1][used]),
            labels if labels is None or len(used) == len(labels) else labels[used],
            options_only=True,
        )
        found = read_answers(
            logits,
            batch,
            [rows[i] for i in group],
            [contexts[i] for i in group],
            [options[i] for i in group],
            lengths and [lengths[index] for index in used],
        )
        for i, answer in zip(group, found, strict=True):
            answers[i] = answer

    groups = list(_groups(rows, budget, start_cost(device)))
    # a split encoder's layers talk to other processes, all in one order
    lanes = 1 if model.backbone.sharded else lanes_for(device, len(groups))
    side_by_side([partial(ask, group) for group in groups], lanes)
    return [answer for answer in answers if answer is not None]


def _groups(rows: Sequence[Encoded], tokens: int, start: int) -> Iterator[list[int]]:
    """Batches of rows by length; rows with options apart, since few of their tokens have to be read."""
    for kind in (True, False):
        members = [i for i, row in enumerate(rows) if (row.n_options > 0) is kind]
        for group in length_batches([row_tokens(rows[i]) for i in members], tokens=tokens, start=start):
            yield [members[i] for i in group]


def read_answers(
    logits: Tensor,
    batch: MRCBatch,
    rows: Sequence[Encoded],
    contexts: Sequence[str],
    options: Sequence[Sequence[str]],
    lengths: Sequence[AnswerLength | None] | None = None,
) -> list[Answer]:
    """Answers of one batch from its ``(B, T, 2)`` logits; rows, contexts and options in the batch's order.

    ``lengths`` are of the tasks that ``batch.prompt`` tells apart.
    """
    scored = option_log_probs(logits, batch) if len(batch.options) else []
    spans = best_spans(logits, batch, lengths) if any(not row.n_options for row in rows) else []
    answers: list[Answer] = []
    first = 0
    for place, row in enumerate(rows):
        if row.n_options:
            answers.append(_choose(scored[place], options[place]))
        else:
            answers.append(_extract(row, contexts[place], spans[place], first))
        first += len(row.windows)
    return answers


def _choose(log_probs: Tensor, options: Sequence[str]) -> Answer:
    probabilities = log_probs.exp()
    best = int(probabilities.argmax())
    return Answer(options[best], float(probabilities[best]), best, tuple(probabilities.tolist()))


def _extract(row: Encoded, context: str, found: SpanAnswer, first: int) -> Answer:
    probability = math.exp(found.log_prob / 2)  # geometric mean of the start's and the end's
    if found.tokens is None:
        return Answer("", probability)
    window = row.windows[found.window - first]
    assert window.context is not None
    start = window.offsets[found.tokens[0] - window.context[0]][0]
    end = window.offsets[found.tokens[1] - window.context[0]][1]
    return Answer(context[start:end], probability, span=(start, end))


def dev_score(
    model: MRCModel,
    rows: Sequence[Encoded],
    examples: Sequence[MRCExample],
    metric: str,
    prompts: Tensor | None = None,
    *,
    injection: Injection = "prefix",
) -> float:
    """Metric of labelled rows of one task, in [0, 1]."""
    answers = answer_rows(
        model,
        rows,
        [example.context for example in examples],
        [example.options for example in examples],
        prompts,
        injection=injection,
    )
    return score(metric, [answer.text for answer in answers], [example.gold_texts for example in examples])
