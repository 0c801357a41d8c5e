"""PPT: one shallow prompt pre-trained on raw text by next-sentence selection (REFERENCE: paper section 4.2).

Gu et al., arXiv:2109.04332, "Unified PPT": every task becomes a multiple-choice question, and so does
pre-training: which of 2 to 16 sentences comes next. Here in the reading-comprehension form of everything
else, so the options are the sentences themselves and not letters.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp2.data.batch import collate
from mp2.data.encode import Encoded, Window
from mp2.model.bank import BankConfig, PromptBank
from mp2.model.checkpoint import Base, TrainedBank
from mp2.model.mrc import SpanHead
from mp2.model.router import Routing
from mp2.model.spans import row_losses
from mp2.runtime import one_after_the_other, rank_and_world
from mp2.training.backbone import right_option
from mp2.training.corpus import Corpus
from mp2.training.loop import Group, LoopConfig, Trainer
from mp2.training.objectives import Mixture


def pretrain_ppt(
    base: Base,
    corpus: Corpus,
    loop: LoopConfig,
    folder: Path,
    *,
    length: int = 16,
    tokens: int = 4096,
    lr: float = 3e-3,
    init_std: float = 0.02,
    seed: int = 42,
) -> TrainedBank:
    """Run (or resume) PPT and write the bank to ``folder/bank``.

    Args:
        base: The frozen encoder.
        corpus: Token files made with its tokenizer.
        loop: Steps, schedule, checkpoints.
        folder: Logs, checkpoints and the bank.
        length: P.
        tokens: Padded tokens per batch.
        lr: Learning rate of prompt and head.
        init_std: Standard deviation of the initial prompt.
        seed: Seed of the initial prompt and of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    config = BankConfig(1, 1, length, base.backbone.hidden_size, 0, "add")
    bank = PromptBank(config, std=init_std, generator=generator).to(base.device)
    head = SpanHead(base.backbone.hidden_size)
    head.load_state_dict(base.head.state_dict())
    model = base.model(head.to(base.device)).eval()
    pad_id = int(base.tokenizer.pad_token_id)

    def loss(rows: list[Window]) -> tuple[Tensor, int, int]:
        encoded = [Encoded((row,), len(row.options), right_option(row)) for row in rows]
        batch = collate(encoded, pad_id=pad_id).to(base.device)
        losses, _ = row_losses(model(batch, bank.prompts.transpose(0, 1), "add"), batch)
        return losses.sum(), batch.known, batch.ids.numel()

    limit = base.backbone.max_length - length
    rank, world = rank_and_world()
    mixture = Mixture(
        {"ppt": 1.0},
        corpus,
        base.tokenizer,
        tokens=tokens,
        max_length=limit,
        seed=seed,
        rank=rank,
        world=world,
    )
    groups = [
        Group("prompts", dict(bank.named_parameters()), lr),
        Group("head", dict(head.named_parameters()), lr / 3),
    ]
    settings = {
        "length": length,
        "tokens": tokens,
        "lr": lr,
        "init_std": init_std,
        "seed": seed,
        "corpus": corpus.meta["key"],
    }
    progress = Trainer(
        groups,
        mixture,
        loss,
        loop,
        folder=folder,
        settings=settings | {"encoder": base.fingerprint},
        seed=seed,
        device=base.device,
        title="ppt",
    ).fit()
    facts: dict[str, Any] = {
        "config": settings | {"loop": asdict(loop)},
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
    }
    router = torch.zeros(0, 1, 1)
    trained = TrainedBank("ppt", bank, router, (), head, Routing(), base.fingerprint, facts)
    with one_after_the_other() as first:
        if first:
            trained.save(folder / "bank")
    return trained
