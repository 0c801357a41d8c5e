"""How long work will take, by how long such work took: what a promise to be in time rests on."""

from __future__ import annotations

import math
import time

SLOWER = 0.5  # how much of a slower pace is believed at once
MEMORY = 3.0  # seconds after which a slow moment is mostly forgotten


class Speed:
    """Seconds of a batch: a fixed part and one that grows with the cost, times the machine's present pace.

    The two parts are measured once, while nobody waits. The pace is learned from every batch, of whatever
    size: a machine that becomes slower is believed quickly, one that becomes faster slowly, so that promises
    rest on its slow moments.
    """

    def __init__(self) -> None:
        self._fixed = self._each = 0.0
        self._pace = 1.0
        self._when = 0.0  # the last batch was learned from
        self.stall = 0.0  # seconds by which a batch of late took longer than expected

    def measure(self, small: tuple[int, float], large: tuple[int, float]) -> None:
        """Take the two parts from ``(cost, seconds)`` of a small and of a large batch."""
        slope = (large[1] - small[1]) / (large[0] - small[0])
        self._each = max(slope, 0.1 * large[1] / large[0])  # noise must not make work look free
        self._fixed = max(0.0, small[1] - self._each * small[0])
        self._pace = 1.0

    def learn(self, cost: int, seconds: float, now: float | None = None) -> None:
        """Remember how long a batch took that ended now (on the monotonic clock)."""
        now = time.monotonic() if now is None else now
        passed, self._when = max(seconds, now - self._when), now
        if not self._each:  # nothing was measured
            self._each = seconds / cost
            return
        forgotten = 1 - math.exp(-passed / MEMORY)
        self.stall = max(self.stall * (1 - forgotten), seconds - self.seconds(cost))
        pace = seconds / (self._fixed + self._each * cost)
        self._pace += (SLOWER if pace > self._pace else forgotten) * (pace - self._pace)

    def seconds(self, cost: int, batches: int = 1) -> float:
        """Seconds that some batches will take together; 0 while nothing is known."""
        return (batches * self._fixed + cost * self._each) * self._pace
