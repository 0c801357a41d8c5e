"""Black-box stages: Bayesian optimisation of the router, CMA-ES of the fused prompt, by forward passes alone.

One call is one candidate on the whole train set, as the paper counts; dev scores are not calls. Decides
nothing about which stages a method has (``mp2.tuning.methods``).

References:
    Paper sections 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mp2.errors import ConfigError
from mp2.runtime import freed_memory_kept
from mp2.tuning.asktell import Array, check_budget, search
from mp2.tuning.bayes import GpUcb
from mp2.tuning.layerwise import LayerWalk
from mp2.tuning.objective import Objective
from mp2.tuning.search_run import SearchRun
from mp2.tuning.stages import Bayes, Cma
from mp2.tuning.state import TaskState

RELEASED_EVERY = 10  # calls between dev scores of the released stage I


def check_stages(state: TaskState) -> None:
    """Refuse what a stage of the method could not do, before any of them spends a call.

    Raises:
        ConfigError: A budget that is too small, or a bank that cannot be searched.
    """
    for stage in state.method.stages:
        if isinstance(stage, Cma):
            check_budget(_budget(state, stage), stage.popsize)
        elif isinstance(stage, Bayes):
            known = known_routers(state) if stage.transfer else {}
            if stage.random + stage.transfer + len(known) < 2:
                raise ConfigError(
                    f"method {state.method.name}: expected at least 2 first points to try: random is"
                    f" {stage.random}, and "
                    + ("its bank has no routers of known tasks" if stage.transfer else "transfer is off")
                )


def _budget(state: TaskState, stage: Cma) -> int:
    return stage.rounds * stage.popsize * state.projector.config.layers or stage.calls


def run_blackbox(run: SearchRun, stage: Bayes | Cma, index: int) -> bool:
    """Run one stage from the state as it stands; the caller restores the best afterwards.

    Args:
        run: What the stages share.
        stage: The settings.
        index: Number of the stage.

    Returns:
        False when nothing ran, because the stage was done before the search was resumed.

    Raises:
        SearchError: A loss is not finite; carries the best candidate.
    """
    if not run.enter(index):
        return False
    with freed_memory_kept(run.state.base.device):
        train = Objective(run.state, run.course.train, run.course.task, loss=stage.loss)
        ended = "error"
        try:
            ended = _bayes(run, stage, train) if isinstance(stage, Bayes) else _cma(run, stage, train)
        finally:
            run.flush()
            run.leave(ended)
    return True


def _bayes(run: SearchRun, stage: Bayes, train: Objective) -> str:
    assert run.state.router is not None
    start = run.state.router.detach().reshape(1, -1).double().cpu().numpy()
    known = known_routers(run.state) if stage.transfer else {}
    first = np.concatenate([start, *(one[None] for one in known.values())]) if stage.transfer else None
    optimiser = GpUcb(
        run.state.router.numel(),
        box=stage.box,
        kappa=stage.kappa,
        random=stage.random,
        first=first,
        seed=run.course.seed,
        scales=stage.scales,
        trust_region=stage.trust_region,
    )
    budget = stage.calls or stage.random + (0 if first is None else len(first))
    if run.search is not None:
        optimiser.load_state_dict(run.search)
    run.calls = optimiser.calls

    def each(candidates: Array, losses: Array) -> None:
        before = optimiser.calls - len(losses)
        chosen = _worth_scoring(run, stage, losses, before)
        scores = _score_routers(run, candidates, chosen, before)
        for i, loss in enumerate(losses):
            run.line(before + i + 1, f"router/{before + i + 1}", float(loss), scores.get(i))
        if before == 0 and known:
            run.facts["similar_tasks"] = _ranked(list(known), losses[1:])
        run.save(optimiser.calls, optimiser.state_dict())

    try:
        return search(train, optimiser, budget, each=each).ended
    except KeyboardInterrupt:  # before the first points are told: what stands is the start
        return "interrupted"


def known_routers(state: TaskState) -> dict[str, Array]:
    """Routers of the pre-trained tasks by name, each ``(L*K,)``.

    Raises:
        ConfigError: They belong to another bank.
    """
    source = state.source
    if source is None or not len(source.router):
        return {}
    c = source.bank.config
    if source.router.shape[1:] != (c.layers, c.modules):
        raise ConfigError(
            f"bank {source.name!r}: expected routers (tasks, {c.layers}, {c.modules}), got"
            f" {tuple(source.router.shape)}: they belong to another bank"
        )
    flat = source.router.flatten(1).double().cpu().numpy()
    return dict(zip(source.tasks, flat, strict=True))


def _worth_scoring(run: SearchRun, stage: Bayes, losses: Array, before: int) -> dict[int, float]:
    """Which of the candidates just told are scored on the dev rows, with the lowest loss up to each."""
    chosen = {}
    for i, loss in enumerate(losses):
        tenth = (before + i + 1) % RELEASED_EVERY == 0
        worth = tenth if stage.select == "released" else loss < run.lowest
        run.lowest = min(run.lowest, float(loss))
        if worth:
            chosen[i] = run.lowest
    return chosen


def _score_routers(
    run: SearchRun, candidates: Array, chosen: Mapping[int, float], before: int
) -> dict[int, float]:
    if not chosen:
        return {}
    router = run.state.router
    assert router is not None
    logits = run.dev.tensor(candidates[list(chosen)]).view(-1, *router.shape[1:])
    measured = run.dev.measure(run.state.route(logits))
    for i, values, (metric, loss) in zip(chosen, logits, measured, strict=True):
        router.copy_(values[None])
        run.offer(metric, loss, before + i + 1, chosen[i])
    return {i: metric for i, (metric, _) in zip(chosen, measured, strict=True)}


def _cma(run: SearchRun, stage: Cma, train: Objective) -> str:
    budget = _budget(run.state, stage)
    walk = LayerWalk(run, stage, train, budget)
    if run.search is not None:
        walk.load_state_dict(run.search)
    run.calls = walk.calls
    try:
        while walk.calls < budget and not walk.stop:
            walk.generation()
            run.save(walk.calls, walk.state_dict())
    except KeyboardInterrupt:
        return "interrupted"
    return walk.stop or "budget"


def _ranked(tasks: Sequence[str], losses: Array) -> list[list[Any]]:
    """Known tasks with the loss their router has here, the most similar first."""
    pairs = zip(tasks, losses[: len(tasks)].tolist(), strict=False)
    return [[task, round(loss, 6)] for task, loss in sorted(pairs, key=lambda pair: pair[1])]
