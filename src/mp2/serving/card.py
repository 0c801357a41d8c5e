"""What is known about a task, for people: scores, router weights, and the known tasks it resembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp2.model.checkpoint import Base
from mp2.model.router import router_weights
from mp2.serving.examples import describe
from mp2.tuning.adapter import Adapter, load_adapter

NEIGHBOURS = 5


def card(name: str, folder: Path, base: Base) -> dict[str, Any]:
    """The card of an adapter.

    Raises:
        CheckpointError: The adapter is damaged.
    """
    adapter = load_adapter(folder)
    facts = adapter.facts
    return {
        "name": name,
        "task": describe(adapter.task),
        "method": adapter.method,
        "base": adapter.base,
        "bank": adapter.bank,
        "shots": facts.get("shots"),
        "seed": facts.get("seed"),
        "dev": facts.get("dev"),
        "held_back": facts.get("held_back"),
        "kept_stage": facts.get("kept_stage"),
        "tuned_parameters": facts.get("tuned_parameters"),
        "seconds": facts.get("seconds"),
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "curve": facts.get("curve", []),
        "router": routing(adapter, base),
    }


def routing(adapter: Adapter, base: Base) -> dict[str, Any] | None:
    """Router weights ``(L, K)`` and the pre-trained tasks with the most similar ones; None without a router.

    Similarity is the cosine of the two tasks' weights after the mean of all pre-trained tasks is taken from
    both, in [-1, 1]: what every task uses says nothing.
    """
    logits = adapter.tensors.get("router")
    if logits is None and adapter.facts.get("router") is not None:
        logits = torch.tensor(adapter.facts["router"])
    if logits is None or adapter.bank is None or adapter.bank not in base.banks:
        return None
    bank = base.bank(adapter.bank)
    if logits.shape != bank.router.shape[1:]:
        return None
    weights = router_weights(logits[None], bank.routing)[0]
    known = router_weights(bank.router.cpu(), bank.routing)
    return {
        "weights": [[round(value, 4) for value in row] for row in weights.tolist()],
        "resembles": [
            {"task": bank.tasks[i], "similarity": round(value, 4)} for i, value in _nearest(weights, known)
        ],
    }


def _nearest(weights: Tensor, known: Tensor) -> list[tuple[int, float]]:
    """Indices of the most similar rows of ``known (N, L, K)`` with their cosine, best first."""
    mean = known.mean(0)
    cosine = torch.cosine_similarity((weights - mean).flatten()[None], (known - mean).flatten(1), dim=1)
    best = cosine.topk(min(NEIGHBOURS, len(known)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
