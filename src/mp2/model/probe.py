"""A linear classifier over pooled hidden states, in the shape of a span head.

Its class scores are written at the places of the options, so that losses, option scores and answers work as
for every other method: the score of option j is its start logit, the end adds the same to each. Only tasks
whose rows all have the same options can have one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mp2.data.batch import MRCBatch


class ProbeHead(nn.Linear):
    """Class scores from the mean hidden state of a row, ``(B, T, H)`` to ``(B, T, 2)``; zero at the start.

    Args:
        hidden: H.
        classes: C, options of every row.
    """

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__(hidden, classes)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()

    def logits(self, hidden: Tensor, batch: MRCBatch) -> Tensor:
        """Start and end logits: the scores at the options' first tokens, 0 everywhere else."""
        scores = self(pooled(hidden, batch))
        window, first, _ = batch.options.unbind(1)
        logits = hidden.new_zeros(*hidden.shape[:2], 2)
        start = torch.zeros_like(window)
        picked = scores[batch.option_row, batch.option_index]
        return logits.index_put((window, first, start), picked.to(logits.dtype))


def pooled(hidden: Tensor, batch: MRCBatch) -> Tensor:
    """Mean over the real tokens of each row, all its windows together: ``(B, T, H)`` to ``(R, H)``."""
    kept = hidden * batch.mask[..., None]
    total = hidden.new_zeros(batch.rows, hidden.shape[-1]).index_add(0, batch.window_row, kept.sum(dim=1))
    count = hidden.new_zeros(batch.rows).index_add(
        0, batch.window_row, batch.mask.sum(dim=1).to(hidden.dtype)
    )
    return total / count.clamp_min(1)[:, None]
