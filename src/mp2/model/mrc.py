"""The reading-comprehension model: encoder, span head and the forward that all methods share.

``MRCModel`` knows nothing of banks or routers: it takes composed prompts. A row's output does not depend on
its batch mates: the attention mask is always passed, and every row may use another prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mp2.data.batch import MRCBatch
from mp2.model.backbone import Backbone, Prompts
from mp2.model.bank import Injection
from mp2.model.label_vectors import added_states
from mp2.model.probe import ProbeHead

Heads = tuple[Tensor, Tensor]
"""Span heads of N tasks: weights ``(N, 2, H)`` and biases ``(N, 2)``."""


class SpanHead(nn.Linear):
    """Start and end logits of each token: ``(B, T, H)`` to ``(B, T, 2)``."""

    def __init__(self, hidden: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(hidden, 2)
        with torch.no_grad():
            self.weight.copy_(torch.randn(2, hidden, generator=generator) * 0.02)
            self.bias.zero_()


class MRCModel(nn.Module):
    """A backbone and a span head.

    Args:
        backbone: The encoder.
        head: The span head, or a classifier in its place.
    """

    def __init__(self, backbone: Backbone, head: SpanHead | ProbeHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        batch: MRCBatch,
        prompts: Tensor | None = None,
        injection: Injection = "prefix",
        heads: Heads | None = None,
        labels: Tensor | None = None,
        *,
        options_only: bool = False,
    ) -> Tensor:
        """Start and end logits.

        Args:
            batch: B windows of R rows; ``batch.prompt`` says which prompt each row uses.
            prompts: ``(N, L, P, H)`` prompts of N tasks (L = 1 for shallow banks), or what
                :meth:`Backbone.prefix_states` made of them, or None.
            injection: How prompts enter a layer.
            heads: Heads of N tasks, chosen by ``batch.prompt`` too; this model's own head for all when None.
            labels: ``(N, C, H)`` vectors of N tasks' label words (:mod:`mp2.model.label_vectors`), chosen by
                ``batch.prompt`` too; None for none.
            options_only: Whether only options will be compared: then the last layer runs for their first and
                last tokens alone. Shares and losses of options stay as they are, since the sum over all
                tokens that they are divided by is the same for all options of a row.

        Returns:
            ``(B, T, 2)``; -inf at tokens that ``options_only`` leaves out.
        """
        rows = batch.prompt[batch.window_row]
        composed = Prompts(prompts, rows, injection) if prompts is not None else None
        few = options_only and batch.asked.shape[1] > 0 and not isinstance(self.head, ProbeHead)
        picks = batch.asked.clamp_min(0) if few else None
        added = None if labels is None else added_states(batch.token_option, rows, labels)
        hidden: Tensor = self.backbone(
            batch.ids, batch.mask, composed, added=added, picks=picks, full=batch.full
        )
        if isinstance(self.head, ProbeHead):
            return self.head.logits(hidden, batch)
        with torch.autocast(hidden.device.type, enabled=False):  # logits of bf16 would tie where none should
            if heads is not None:
                weight, bias = heads
                hidden = hidden.to(weight.dtype)
                logits = torch.baddbmm(bias[rows][:, None], hidden, weight[rows].transpose(1, 2))
            else:
                logits = self.head(hidden.to(self.head.weight.dtype))
        return _spread(logits, batch) if few else logits


def _spread(logits: Tensor, batch: MRCBatch) -> Tensor:
    """Logits ``(B, W, 2)`` of the asked tokens at their places among all, ``(B, T, 2)``; -inf elsewhere."""
    windows, width = batch.ids.shape
    places = torch.where(batch.asked < 0, width, batch.asked)  # what fills up goes one beyond the end
    everywhere = logits.new_full((windows, width + 1, 2), float("-inf"))
    return everywhere.scatter(1, places[..., None].expand_as(logits), logits)[:, :width]
