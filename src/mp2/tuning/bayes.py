"""Bayesian optimisation as ask and tell: a Gaussian process with an upper confidence bound (BoTorch).

The first points (known ones, then random ones) are asked at once, later ones one by one. The process
(``mp2.tuning.gaussian_process``) looks at the whole box, or with ``trust_region`` only near the best point.
Each ``ask`` depends on what was told and the seed alone, so a resumed search continues as if it had never
stopped.

References:
    Paper section 3.4. UCB: Srinivas et al., arXiv:0912.3995. Trust region: Eriksson et al., *TuRBO*,
    arXiv:1910.01739.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mp2.errors import ConfigError
from mp2.tuning.asktell import Array, Point, better
from mp2.tuning.stages import Scales

REFIT = 1.3  # hyper-parameters are fitted anew when this many times more points are known
LENGTH, SHORTEST, LONGEST = 0.4, 0.02, 1.6  # of a trust region, as a share of the box
SUCCESSES, FAILURES = 3, 6  # in a row, before a region doubles or halves


class GpUcb:
    """Gaussian process (Matern 5/2) and upper confidence bound in a box around zero.

    Args:
        dimension: D.
        box: Every coordinate stays in [-box, box].
        kappa: Weight of the standard deviation.
        random: Random points, after the known ones.
        first: ``(n, D)`` known points to try first, moved into the box.
        seed: Seed of the random points and of the search for the next.
        scales: Length scales of the process: ``one``, or one for ``each`` axis; ``released``: one, losses as
            they come and a fit before every point.
        trust_region: Stay near the best.

    Raises:
        ConfigError: A value that cannot work.
    """

    population = 1

    def __init__(
        self,
        dimension: int,
        *,
        box: float = 5.0,
        kappa: float = 2.0,
        random: int = 20,
        first: Array | None = None,
        seed: int = 0,
        scales: Scales = "each",
        trust_region: bool = False,
    ) -> None:
        known = np.empty((0, dimension)) if first is None else np.asarray(first, dtype=np.float64)
        if known.ndim != 2 or known.shape[1] != dimension:
            raise ConfigError(f"first points: expected (n, {dimension}), got {known.shape}")
        if random + len(known) < 2 or not box > 0 or kappa < 0:
            raise ConfigError(
                "expected at least 2 first points, box > 0 and kappa >= 0, got"
                f" {random + len(known)}, {box!r} and {kappa!r}"
            )
        self.dimension, self.box, self.kappa, self.seed = dimension, box, kappa, seed
        self.scales, self.trust_region = scales, trust_region
        drawn = np.random.default_rng(seed).uniform(-box, box, (random, dimension))
        self._first = np.concatenate([known.clip(-box, box), drawn])
        self._points, self._losses = np.empty((0, dimension)), np.empty(0)
        self._fitted: dict[str, Array] = {}
        self._fitted_at = 0
        self._length, self._good, self._bad = LENGTH, 0, 0

    @property
    def calls(self) -> int:
        """Points told."""
        return len(self._losses)

    @property
    def best(self) -> Point | None:
        """Lowest loss told so far."""
        return better(None, self._points, self._losses)

    @property
    def stop(self) -> str:
        """Never by itself."""
        return ""

    def ask(self) -> Array:
        """The first points not told yet, or the next one ``(1, D)``."""
        if self.calls < len(self._first):
            return self._first[self.calls :]
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + self.calls)
            return self._next()

    def tell(self, candidates: Array, losses: Array) -> None:
        """Remember the losses; grow or shrink the trust region."""
        started = self.calls >= len(self._first)
        before = self.best
        self._points = np.concatenate([self._points, candidates])
        self._losses = np.concatenate([self._losses, losses])
        if started and before is not None:
            improved = losses.min() < before.loss - 1e-3 * abs(before.loss)
            self._good, self._bad = (self._good + 1, 0) if improved else (0, self._bad + 1)
            if self._good == SUCCESSES:
                self._length, self._good = min(2 * self._length, LONGEST), 0
            elif self._bad == FAILURES:
                self._length, self._bad = self._length / 2, 0
                if self._length < SHORTEST:
                    self._length = LENGTH

    def _next(self) -> Array:
        from mp2.tuning import gaussian_process as gp  # BoTorch takes seconds to import

        plain = self.scales == "released"
        points = torch.from_numpy(self._points / (2 * self.box) + 0.5)
        values = torch.from_numpy(-(self._losses if plain else self._capped()))
        model = gp.process(points, values, self._fitted, self.scales)
        if plain or self.calls >= REFIT * self._fitted_at:
            self._fitted, self._fitted_at = gp.fit(model), self.calls
        bounds = torch.stack([torch.zeros(self.dimension), torch.ones(self.dimension)]).double()
        if self.trust_region:
            assert self.best is not None
            centre = torch.from_numpy(self.best.candidate / (2 * self.box) + 0.5)
            lengths = gp.length_scales(model)
            reach = self._length / 2 * lengths / lengths.log().mean().exp()
            bounds = torch.stack([centre - reach, centre + reach]).clamp(0, 1)
        found = gp.highest(model, self.kappa, bounds).numpy()
        return np.array((found - 0.5) * 2 * self.box, dtype=np.float64)

    def _capped(self) -> Array:
        """Losses, those far above the middle as the bound: a few awful points must not flatten the others."""
        middle, low = np.median(self._losses), self._losses.min()
        return np.minimum(self._losses, middle + 3 * (middle - low)) if middle > low else self._losses

    def state_dict(self) -> dict[str, Any]:
        """What was told, the last fit, and the trust region."""
        return {
            "points": self._points,
            "losses": self._losses,
            "fitted_at": self._fitted_at,
            "region": [self._length, self._good, self._bad],
            **{f"fitted/{name}": value for name, value in self._fitted.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._points, self._losses = np.array(state["points"]), np.array(state["losses"])
        self._fitted_at = int(state["fitted_at"])
        self._length, self._good, self._bad = state["region"]
        self._fitted = {
            key.removeprefix("fitted/"): np.array(value)
            for key, value in state.items()
            if key.startswith("fitted/")
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """BoTorch warns of jitter, deprecations and restarts; none of it is the user's affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
