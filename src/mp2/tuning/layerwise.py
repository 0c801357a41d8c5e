"""Stage II: CMA-ES of the fused intrinsic prompt, one layer after the other (divide and conquer).

A generation of layer l is evaluated with the other layers as they stand, so only layers from l up run.
Decides what a layer is set to afterwards and which moments are scored on the dev rows.

References:
    Paper section 3.4. Layer-wise search: Sun et al., *BBTv2*, arXiv:2205.11200.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mp2.tuning.asktell import Array, CmaEs, evaluate
from mp2.tuning.objective import Objective
from mp2.tuning.search_run import SearchRun
from mp2.tuning.stages import Cma


class LayerWalk:
    """CMA-ES of each layer in turn: one generation of a layer, with the others as they stand.

    Args:
        run: What the stages share; its state gets a fused vector per layer when it has none yet.
        stage: The settings.
        train: Losses on the train rows.
        budget: Calls in all, never exceeded.
    """

    def __init__(self, run: SearchRun, stage: Cma, train: Objective, budget: int) -> None:
        self.run, self.stage, self.train, self.budget = run, stage, train, budget
        state = run.state
        if state.z is None:
            state.fuse()
        self.start = self._vectors()
        self.optimisers = self._optimisers()
        self.calls, self.turn, self.lowest = 0, 0, float("inf")

    def _vectors(self) -> Array:
        """``(L, d)`` as the state has them."""
        z = self.run.state.z
        assert z is not None
        return np.array(z.detach()[0].double().cpu().numpy())

    def _optimisers(self) -> list[CmaEs]:
        made = []
        for layer, start in enumerate(self.start):
            # a vector without any spread has no scale of its own
            unit = (float(start.std()) or 1.0) if self.stage.relative else 1.0
            bound = self.stage.bound * unit
            made.append(
                CmaEs(
                    # what stage I found is known too late to refuse it: a value beyond the bound starts at it
                    start.clip(-bound, bound) if bound else start,
                    self.stage.sigma[min(layer, 1)] * unit,
                    population=self.stage.popsize,
                    bound=bound,
                    steps=self.stage.loss == "metric",
                    seed=(self.run.course.seed, layer),
                )
            )
        return made

    @property
    def stop(self) -> str:
        """Why no layer has anything more to ask; empty while one has."""
        reasons = [optimiser.stop for optimiser in self.optimisers]
        return "; ".join(dict.fromkeys(reasons)) if self.stage.heed_stop and all(reasons) else ""

    def generation(self) -> None:
        """Ask the next layer for a generation, evaluate it, and set the layer to what is kept."""
        while self.stage.heed_stop and self.optimisers[self.turn % len(self.start)].stop:
            self.turn += 1
        layer, round_ = self.turn % len(self.start), self.turn // len(self.start)
        optimiser, before = self.optimisers[layer], self.calls
        candidates = optimiser.ask()[: self.budget - before]
        self.train.over_layer(layer)
        losses = evaluate(self.train, candidates, before, optimiser.best)
        optimiser.tell(candidates, losses)
        self.calls, self.turn = before + len(losses), self.turn + 1
        scores = self._score_released(layer, candidates, losses, before)
        self._keep(layer, candidates, losses)
        if self.stage.select == "dev" and self._due(before):
            scores[len(losses) - 1] = self._score()
        for i, loss in enumerate(losses):
            name = f"layer{layer}/round{round_}/{i + 1}"
            self.run.line(before + i + 1, name, float(loss), **scores.get(i, {}))

    def _due(self, before: int) -> bool:
        every = self.stage.eval_every
        return self.calls // every > before // every or self.calls >= self.budget or bool(self.stop)

    def _keep(self, layer: int, candidates: Array, losses: Array) -> None:
        """Set the layer to its best candidate, by the stage's rule."""
        best = self.optimisers[layer].best
        assert best is not None
        at = int(losses.argmin())
        if self.stage.keep == "best-ever":
            self._set(layer, best.candidate)
        elif losses[at] < self.lowest:
            self._set(layer, candidates[at])
        self.lowest = min(self.lowest, float(losses[at]))

    def _set(self, layer: int, vector: Array) -> None:
        z = self.run.state.z
        assert z is not None
        z[0, layer] = self.run.dev.tensor(vector)

    def _score(self) -> dict[str, float]:
        """Dev scores of what stands, and of the means of all distributions."""
        moments = [np.stack([optimiser.mean for optimiser in self.optimisers]), self._vectors()]
        mean, standing = self._measure(moments, self.calls, self.lowest)
        return {"dev": standing, "dev_mean": mean}

    def _score_released(
        self, layer: int, candidates: Array, losses: Array, before: int
    ) -> dict[int, dict[str, float]]:
        """The released rule: the candidate of every hundredth call, whatever it is."""
        if self.stage.select != "released":
            return {}
        standing, scores = self._vectors(), {}
        for i in range(len(losses)):
            if (before + i + 1) % self.stage.eval_every == 0:
                moment = standing.copy()
                moment[layer] = candidates[i]
                lowest = min(self.lowest, float(losses[: i + 1].min()))
                scores[i] = {"dev": self._measure([moment], before + i + 1, lowest)[0]}
        self._restore_z(standing)
        return scores

    def _measure(self, moments: list[Array], call: int, lowest: float) -> list[float]:
        """Score ``(L, d)`` vectors on the dev rows and offer each; the last one is what stands afterwards.

        ``lowest`` is the lowest train loss so far, which is told beside them.
        """
        vectors = self.run.dev.tensor(np.stack(moments))
        measured = self.run.dev.measure(self.run.state.project(vectors, 0))
        for moment, (metric, loss) in zip(moments, measured, strict=True):
            self._restore_z(moment)
            self.run.offer(metric, loss, call, lowest)
        return [metric for metric, _ in measured]

    def _restore_z(self, vectors: Array) -> None:
        z = self.run.state.z
        assert z is not None
        z.copy_(self.run.dev.tensor(vectors)[None])

    def state_dict(self) -> dict[str, Any]:
        """Everything the next generation depends on, besides the vectors that stand."""
        return {
            "start": self.start,
            "calls": self.calls,
            "turn": self.turn,
            "lowest": self.lowest,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue: the optimisers start again where they started, and are told what they were told."""
        self.start = np.array(state["start"])
        self.optimisers = self._optimisers()
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.calls, self.turn, self.lowest = state["calls"], state["turn"], state["lowest"]
