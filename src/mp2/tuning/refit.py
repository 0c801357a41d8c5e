"""Learning once more from all rows, when the dev rows have said for how long.

Dev rows choose a moment and teach nothing; where labels are few, half of them are spent on that. Here the
method runs again on train and dev rows together, every stage for the steps that the dev rows had kept of it,
and its last moment is taken as it comes (what scikit-learn's searches do with ``refit``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mp2.errors import ConfigError
from mp2.model.checkpoint import Base
from mp2.runtime import Precision
from mp2.tasks.render import MRCExample
from mp2.tuning.adapter import Adapter
from mp2.tuning.course import merit
from mp2.tuning.methods import Method
from mp2.tuning.stages import Gradient
from mp2.tuning.tune import tune


def check_refit(method: Method) -> None:
    """Refuse a method that chooses more than a moment by its dev rows.

    Raises:
        ConfigError: A stage of it is a search or a probe.
    """
    if not method.by_gradients:
        raise ConfigError(
            f"method {method.name}: it cannot learn again from its dev rows, which choose more than a moment"
            " (a candidate, or a classifier); methods tuned by gradients alone can"
        )


def refit(
    base: Base,
    adapter: Adapter,
    train: Sequence[MRCExample],
    dev: Sequence[MRCExample],
    method: Method,
    *,
    seed: int = 42,
    precision: Precision = "fp32",
) -> Adapter:
    """Tune again on all rows, for as long as the dev rows said.

    Args:
        base: The base of the first time.
        adapter: What :func:`mp2.tuning.tune.tune` gave for the same arguments.
        train: Train rows.
        dev: Dev rows, which are now learned from too.
        method: The row of the methods table.
        seed: Seed of everything random.
        precision: As in the first time.

    Returns:
        The new adapter; its facts are those of the first one (``dev`` is the score by which the moment was
        chosen), but for its own router, with ``refit``, the number of rows, ``refit_steps``, and the
        seconds of both. The first one where the dev rows had kept the start and no labels are calibrated.

    Raises:
        ConfigError: A stage of the method is a search or a probe.
    """
    check_refit(method)
    stages = kept_stages(method, adapter.facts["curve"])
    if not stages and not adapter.label_offsets:
        return adapter
    again = tune(
        base,
        adapter.task,
        [*train, *dev],
        None,
        replace(method, stages=stages),
        seed=seed,
        precision=precision,
        calibrate=bool(adapter.label_offsets),
    )
    facts = adapter.facts | {
        "refit": len(train) + len(dev),
        "refit_steps": sum(stage.steps for stage in stages),
        "seconds": round(adapter.facts["seconds"] + again.facts["seconds"], 2),
    }
    if "router" in again.facts:
        facts["router"] = again.facts["router"]
    return replace(again, facts=facts)


def kept_stages(method: Method, curve: Sequence[dict[str, float]]) -> tuple[Gradient, ...]:
    """The stages that led to the moment that was kept, each with the steps after which it handed on.

    A stage hands on the best moment so far (:class:`mp2.tuning.course.Best`); without one it is left out.
    """
    stages: list[Gradient] = []
    for index, stage in enumerate(method.stages):
        assert isinstance(stage, Gradient)
        so_far = [point for point in curve if point["stage"] <= index]
        best = max(so_far, key=lambda point: merit(point["dev"], point.get("dev_loss", math.nan)))
        if best["stage"] == index:
            stages.append(replace(stage, steps=int(best["step"]), eval_every=0))
    return tuple(stages)
