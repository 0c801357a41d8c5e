"""How long the answers of a task are, which the start and the end of a span, found apart, do not know.

A head that scores start and end tokens one by one likes to join the start of one candidate to the end of
another. The few labelled rows of a task say how long its answers are; a span's score gets that along
(docs/decisions/0013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mp2.data.encode import Encoded


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """A normal distribution of the logarithm of an answer's tokens.

    Attributes:
        mean: Its mean.
        deviation: Its standard deviation.
    """

    mean: float
    deviation: float

    def log_shares(self, most: int, device: torch.device | str = "cpu") -> Tensor:
        """Log density of answers of 1 to ``most`` tokens, ``(most,)``, the likeliest length being 0."""
        away = torch.arange(1, most + 1, device=device).log() - self.mean
        return -(away / self.deviation).square() / 2


def answer_length(rows: Sequence[Encoded]) -> AnswerLength | None:
    """Length of the answers of labelled rows; None where no row has a span of its text for an answer.

    One answer of e times the mean length is imagined beside them, so that a few rows of one length do not
    forbid all others.

    Args:
        rows: Encoded rows of one task.
    """
    lengths = [span[1] - span[0] + 1 for row in rows if (span := _answer(row)) is not None]
    if not lengths:
        return None
    logs = [math.log(length) for length in lengths]
    mean = sum(logs) / len(logs)
    squares = sum((value - mean) ** 2 for value in logs)
    return AnswerLength(mean, math.sqrt((squares + 1) / (len(logs) + 1)))


def _answer(row: Encoded) -> tuple[int, int] | None:
    """First gold span that lies in the text: not that of an option, nor of the words for "no answer"."""
    if row.n_options:
        return None
    spans = (window.gold for window in row.windows if window.gold != window.no_answer)
    return next((span for span in spans if span is not None), None)
