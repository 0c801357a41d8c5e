"""PEFT's prefix and prompt tuning on the same job: one task, a span head, right padding, an attention mask.

As its documentation has it: ``get_peft_model`` around a Hugging Face encoder with its default attention, and
AdamW; in bf16 under autocast. It has one prompt per model and no router, so it takes part where there is one
task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import BertModel
from workload import option_spans

from mp2.data.encode import Encoded
from mp2.runtime import Precision, autocast

LENGTH = 16
KINDS = {"peft-prefix": PrefixTuningConfig, "peft-prompt": PromptTuningConfig}


class PeftRival:
    """A frozen encoder with PEFT's prompt and a span head.

    Args:
        encoder: An encoder of its own.
        kind: A key of ``KINDS``.
        device: Where it runs.
    """

    def __init__(self, encoder: BertModel, kind: str, device: str = "cpu") -> None:
        config = KINDS[kind](task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=LENGTH)
        self.model = get_peft_model(encoder, config).to(device)
        self.head = nn.Linear(encoder.config.hidden_size, 2).to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW([*trained, *self.head.parameters()], 1e-3)
        self.device = device

    def logits(self, rows: Sequence[Encoded], precision: Precision) -> Tensor:
        """``(B, T, 2)`` logits of the text's tokens."""
        windows = [row.windows[0] for row in rows]
        width = max(len(window.ids) for window in windows)
        ids = torch.zeros(len(windows), width, dtype=torch.long)
        mask = torch.zeros(len(windows), width, dtype=torch.long)
        for place, window in enumerate(windows):
            ids[place, : len(window.ids)] = torch.tensor(window.ids)
            mask[place, : len(window.ids)] = 1
        with autocast(self.device, precision):
            hidden = self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
            ).last_hidden_state
            found: Tensor = self.head(hidden[:, -width:])
        return found.float()

    def train_step(self, rows: Sequence[Encoded], precision: Precision = "fp32") -> None:
        """Forward, loss over all positions, backward, AdamW."""
        self.model.eval()
        gold = [row.windows[0].gold or (0, 0) for row in rows]
        logits = self.logits(rows, precision)
        start, end = (torch.tensor([g[i] for g in gold], device=self.device) for i in (0, 1))
        loss = F.cross_entropy(logits[..., 0], start) + F.cross_entropy(logits[..., 1], end)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    @torch.no_grad()
    def answers(self, rows: Sequence[Encoded], precision: Precision = "fp32") -> list[int]:
        """The best option of each row by the sum of its two logits; for span tasks the best start."""
        self.model.eval()
        logits = self.logits(rows, precision)
        start, end = logits.unbind(2)
        if rows[0].n_options:
            first, last = option_spans(rows).to(logits.device).unbind(2)
            start = start.gather(1, first) + end.gather(1, last)
        found: list[int] = start.argmax(1).tolist()
        return found
