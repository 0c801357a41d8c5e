"""What a model fit for many axes is worth to Bayesian optimisation, on a function with a router's shape.

    python benchmarks/many_axes.py --layers 24 --seeds 1,2

A candidate holds L*8 logits. In each layer their sigmoids mix eight random vectors, as a router mixes
prompts, and the loss is the squared distance from a mixture drawn beforehand (0 at best). 100 calls, 20 of
them random, in the box [-5, 5], with UCB at kappa 2: one length scale for all axes, one for each, and one for
each within a trust region. Printed beside them: the best of 100 random points, and the loss of equal parts.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import numpy as np

from mp2.tuning.asktell import Array, search
from mp2.tuning.bayes import GpUcb
from mp2.tuning.stages import Scales

MODULES, WIDTH, CALLS = 8, 16, 100
MODES: dict[str, tuple[Scales, bool]] = {
    "one": ("one", False),
    "each": ("each", False),
    "region": ("each", True),
}


class Mixture:
    """Squared distance of a mixture from one that was drawn."""

    def __init__(self, layers: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.vectors = random.normal(size=(layers, MODULES, WIDTH))
        self.target = self._mixed(3 * random.normal(size=(1, layers * MODULES)))

    def _mixed(self, logits: Array) -> Array:
        gates = 1 / (1 + np.exp(-logits.reshape(len(logits), -1, MODULES)))
        mixed: Array = np.einsum("nlk,lkw->nlw", gates, self.vectors) / gates.sum(-1, keepdims=True)
        return mixed

    def __call__(self, candidates: Array) -> Array:
        """Losses ``(n,)`` of candidates ``(n, L*8)``."""
        losses: Array = ((self._mixed(candidates) - self.target) ** 2).sum(axis=(1, 2))
        return losses


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seeds", default="1,2")
    arguments = parser.parse_args()
    loss, size = Mixture(arguments.layers, seed=0), arguments.layers * MODULES
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    drawn = [np.random.default_rng(seed).uniform(-5, 5, (CALLS, size)) for seed in seeds]
    print(f"{size} axes: equal parts {loss(np.zeros((1, size)))[0]:.2f},", end=" ")
    print(f"best of {CALLS} random points {mean(loss(points).min() for points in drawn):.2f}")
    for mode, (scales, region) in MODES.items():
        begin = time.process_time()
        found = [
            search(loss, GpUcb(size, seed=seed, scales=scales, trust_region=region), CALLS) for seed in seeds
        ]
        spent = (time.process_time() - begin) / len(seeds)
        print(f"{mode:7} {mean(one.best.loss for one in found):6.2f}  {spent:5.1f} processor s a search")


if __name__ == "__main__":
    main()
