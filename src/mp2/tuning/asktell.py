"""Minimise any function from forward evaluations alone: ask for candidates, tell their losses.

An optimiser has ``ask() -> (n, D)`` and ``tell(candidates, losses)`` and knows nothing of models. ``search``
runs one on a function until its budget of calls, or its own end. CMA-ES is here, Bayesian optimisation in
``mp2.tuning.bayes``. Decides nothing about what a candidate means.

References:
    CMA-ES: Hansen, *The CMA Evolution Strategy: A Tutorial*, arXiv:1604.00772; the ``cma`` package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mp2.errors import ConfigError, SearchError

Array = NDArray[np.float64]
Objective = Callable[[Array], Any]


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate ``(D,)`` and its loss."""

    candidate: Array
    loss: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ended with.

    Attributes:
        best: The evaluated candidate with the lowest loss.
        calls: Evaluations in all; one candidate is one call.
        ended: ``budget``, ``interrupted`` (Ctrl-C), or the optimiser's own reason.
    """

    best: Point
    calls: int
    ended: str


class Optimiser(Protocol):
    """The whole interface between a search and its optimiser."""

    population: int

    @property
    def calls(self) -> int:
        """Losses told so far."""

    @property
    def best(self) -> Point | None:
        """Lowest loss told so far."""

    @property
    def stop(self) -> str:
        """Why the optimiser has nothing more to ask; empty while it has."""

    def ask(self) -> Array:
        """Candidates ``(n, D)`` to evaluate next."""

    def tell(self, candidates: Array, losses: Array) -> None:
        """Losses ``(n,)`` of candidates that were asked; fewer than were asked when a budget ends."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next ``ask`` depends on: arrays and JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an optimiser made with the same arguments."""


def search(
    objective: Objective,
    optimiser: Optimiser,
    calls: int,
    *,
    each: Callable[[Array, Array], None] | None = None,
) -> Found:
    """Minimise a function.

    Args:
        objective: ``(n, D)`` candidates to their ``(n,)`` losses.
        optimiser: What to ask; one that was already told some continues from there.
        calls: Evaluations in all, those already told included; never exceeded.
        each: Called after every ``tell`` with the candidates and their losses.

    Returns:
        The best, also after Ctrl-C when anything was evaluated.

    Raises:
        ConfigError: The budget is smaller than one population.
        SearchError: A loss is not finite, or there are not as many losses as candidates.
    """
    check_budget(calls, optimiser.population)
    ended = "budget"
    try:
        while optimiser.calls < calls:
            if optimiser.stop:
                ended = optimiser.stop
                break
            candidates = optimiser.ask()[: calls - optimiser.calls]
            losses = evaluate(objective, candidates, optimiser.calls, optimiser.best)
            optimiser.tell(candidates, losses)
            if each is not None:
                each(candidates, losses)
    except KeyboardInterrupt:
        if optimiser.best is None:
            raise
        ended = "interrupted"
    assert optimiser.best is not None
    return Found(optimiser.best, optimiser.calls, ended)


def check_budget(calls: int, population: int) -> None:
    """Refuse a budget in which nothing can be learned.

    Raises:
        ConfigError: It holds not even one population.
    """
    if calls < max(1, population):
        raise ConfigError(
            f"budget: expected at least one population of {max(1, population)} calls, got {calls}"
        )


def evaluate(objective: Objective, candidates: Array, before: int = 0, best: Point | None = None) -> Array:
    """Losses of candidates, checked.

    Args:
        objective: The function.
        candidates: ``(n, D)``.
        before: Calls made earlier, for the message.
        best: Best so far, carried by the error.

    Raises:
        SearchError: A loss is not finite, or there are not as many losses as candidates.
    """
    losses = np.asarray(objective(candidates), dtype=np.float64)
    if losses.shape != (len(candidates),):
        raise SearchError(
            f"the objective returned losses of shape {losses.shape} for {len(candidates)} candidates", best
        )
    if not np.isfinite(losses).all():
        wrong = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise SearchError(
            f"the objective returned {losses[wrong]} in call {before + wrong + 1}: expected a finite loss;"
            " the search stops here and keeps its best so far",
            best,
        )
    return losses


def better(best: Point | None, candidates: Array, losses: Array) -> Point | None:
    """The best of what was known and a few new losses."""
    if not len(losses):
        return best
    at = int(losses.argmin())
    if best is not None and best.loss <= losses[at]:
        return best
    return Point(np.array(candidates[at], dtype=np.float64), float(losses[at]))


class CmaEs:
    """CMA-ES with its own random generator, so that several can run in turn.

    Its state is what it was told: a resumed optimiser asks again from the same seed, is told the recorded
    losses, and so arrives at the same distribution. Nothing is pickled.

    Args:
        start: ``(D,)`` mean of the first distribution.
        sigma: Its standard deviation in every coordinate.
        population: Candidates per generation.
        bound: Every coordinate stays in [-bound, bound]; 0 for no bound.
        steps: The losses are of a few values, such as a metric's: candidates that are all alike say nothing
            of convergence, which otherwise ends the search; ten such generations in a row do.
        seed: Seed of the candidates.

    Raises:
        ConfigError: A value that cannot work.
    """

    def __init__(
        self,
        start: Array,
        sigma: float,
        *,
        population: int = 20,
        bound: float = 0.0,
        steps: bool = False,
        seed: int | tuple[int, ...] = 0,
    ) -> None:
        from cma import CMAEvolutionStrategy

        start = np.asarray(start, dtype=np.float64)
        if start.ndim != 1 or not len(start) or not np.isfinite(start).all():
            raise ConfigError(f"start: expected one finite vector, got shape {start.shape}")
        if not sigma > 0 or population < 4:
            raise ConfigError(
                f"sigma and population: expected > 0 and at least 4, got {sigma!r} and {population}"
            )
        if bound and np.abs(start).max() > bound:
            raise ConfigError(
                f"start: expected values within the bound {bound}, got {np.abs(start).max():.4g}"
            )
        self.population, self.calls = population, 0
        self._best: Point | None = None
        self._random = np.random.default_rng(seed)
        self._losses: list[Array] = []
        self._last = np.empty((0, len(start)))
        options: dict[str, Any] = {
            "popsize": population,
            "bounds": [-bound, bound] if bound else [None, None],
            "randn": lambda *shape: self._random.standard_normal(shape),
            "seed": float("nan"),
            "verbose": -9,
            "verb_log": 0,
        }
        if steps:
            options |= {"tolfun": 0, "tolfunhist": 0, "tolflatfitness": 10}
        self._strategy: Any = CMAEvolutionStrategy(start, sigma, options)
        self._stop = ""

    @property
    def best(self) -> Point | None:
        """Lowest loss told so far."""
        return self._best

    @property
    def mean(self) -> Array:
        """``(D,)`` mean of the distribution, within the bounds."""
        return np.array(self._strategy.result.xfavorite, dtype=np.float64)

    @property
    def stop(self) -> str:
        """CMA-ES's own termination flags, empty while it goes on."""
        return self._stop

    def ask(self) -> Array:
        """One generation ``(population, D)``."""
        return np.array(self._strategy.ask(), dtype=np.float64)

    def tell(self, candidates: Array, losses: Array) -> None:
        """Move the distribution; part of a generation only counts for the best."""
        self.calls += len(losses)
        self._best = better(self._best, candidates, losses)
        if len(losses) == self.population:
            self._strategy.tell(list(candidates), list(losses))
            # once a generation, also in a replay: asked for its flags, cma counts flat generations
            self._stop = ", ".join(sorted(self._strategy.stop()))
            self._losses.append(np.array(losses, dtype=np.float64))
            self._last = np.array(candidates, dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Losses of all generations, candidates of the last one (a check), and the best."""
        state: dict[str, Any] = {
            "losses": np.array(self._losses).reshape(-1, self.population),
            "last": self._last,
            "calls": self.calls,
        }
        if self._best is not None:
            state |= {"best": self._best.candidate, "best_loss": self._best.loss}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay recorded generations.

        Raises:
            SearchError: They do not lead to the recorded candidates.
        """
        for losses in state["losses"]:
            self.tell(self.ask(), losses)
        if int(state["calls"]) > len(state["losses"]) * self.population:
            self.ask()  # one of which the budget left a part was drawn as well
        if self._last.shape != state["last"].shape or not np.allclose(self._last, state["last"], rtol=1e-9):
            raise SearchError("the saved search belongs to another start, seed or version of cma")
        self.calls = int(state["calls"])
        if "best" in state:
            self._best = Point(np.array(state["best"]), float(state["best_loss"]))
