"""What is known about a task, for people: scores, router weights, and the known tasks it resembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mp2.errors import CheckpointError, ConfigError
from mp2.evaluation.inspect import adapter_router, inspect_router
from mp2.model.checkpoint import Base
from mp2.model.router import router_weights
from mp2.serving.examples import describe
from mp2.serving.ready import read_adapter
from mp2.tuning.adapter import Adapter


def card(name: str, folder: Path, base: Base) -> dict[str, Any]:
    """The card of an adapter.

    Raises:
        CheckpointError: The adapter is damaged.
    """
    adapter = read_adapter(name, folder)
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
    """Router weights ``(L, K)`` and the known tasks whose gates are most alike; None without a router."""
    if adapter.bank is None or adapter.bank not in base.banks:
        return None
    bank = base.bank(adapter.bank)
    try:
        logits = adapter_router(adapter)
        found = inspect_router(adapter.task.name, logits, bank)
    except (ConfigError, CheckpointError):  # a method without a router, or a router of another bank
        return None
    weights = router_weights(logits[None], bank.routing)[0]
    return {
        "weights": [[round(value, 4) for value in row] for row in weights.tolist()],
        "resembles": [{"task": task, "similarity": round(value, 4)} for task, value in found.nearest],
    }
