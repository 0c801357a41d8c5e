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
        head: The span head.
    """

    def __init__(self, backbone: Backbone, head: SpanHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        batch: MRCBatch,
        prompts: Tensor | None = None,
        injection: Injection = "prefix",
        heads: Heads | None = None,
    ) -> Tensor:
        """Start and end logits.

        Args:
            batch: B windows of R rows; ``batch.prompt`` says which prompt each row uses.
            prompts: ``(N, L, P, H)`` prompts of N tasks (L = 1 for shallow banks), or None.
            injection: How prompts enter a layer.
            heads: Heads of N tasks, chosen by ``batch.prompt`` too; this model's own head for all when None.

        Returns:
            ``(B, T, 2)``.
        """
        rows = batch.prompt[batch.window_row]
        composed = Prompts(prompts, rows, injection) if prompts is not None else None
        hidden: Tensor = self.backbone(batch.ids, batch.mask, composed)
        if heads is not None:
            weight, bias = heads
            return torch.baddbmm(bias[rows][:, None], hidden, weight[rows].transpose(1, 2))
        logits: Tensor = self.head(hidden)
        return logits
