"""How long work will take, by how long such work took: what a promise to be in time rests on."""

from __future__ import annotations

import math

SMOOTHING = 0.2


class Speed:
    """Seconds of batches by their cost, learned as they come, in steps of powers of two.

    A batch of many rows costs less per row than a single one, so batches of each size are remembered apart.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # step -> smoothed seconds of a batch of 2**step

    def learn(self, cost: int, seconds: float) -> None:
        """Remember how long a batch took."""
        step, at_step = _step(cost), seconds * 2 ** _step(cost) / cost
        old = self._seconds.get(step)
        self._seconds[step] = at_step if old is None else old + SMOOTHING * (at_step - old)

    def seconds(self, cost: int, batches: int = 1) -> float:
        """Seconds that some batches of equal cost will take; 0 while nothing is known.

        A size that has not been seen takes no longer than the next larger one that has, and no longer per
        cost than the next smaller one.

        Args:
            cost: Cost of all batches together.
            batches: Number of batches, at least 1.
        """
        if not cost or not self._seconds:
            return 0.0
        each = cost / batches
        step = _step(each)
        smaller = max((known for known in self._seconds if known <= step), default=None)
        larger = min((known for known in self._seconds if known > step), default=None)
        bounds = []
        if smaller is not None:
            bounds.append(self._seconds[smaller] * each / 2**smaller)
        if larger is not None:
            bounds.append(self._seconds[larger])
        return float(batches * min(bounds))


def _step(cost: float) -> int:
    return max(0, round(math.log2(cost)))
