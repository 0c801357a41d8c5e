"""What a grid tells while it runs: a run's result in a few words, and the time that is left."""

from __future__ import annotations

from collections.abc import Sequence

from mp2.evaluation.records import Record


def outcome(record: Record) -> str:
    """A run's result in a few words."""
    if record.status == "failed":
        return f"FAILED: {record.error.splitlines()[0][:160]}"
    return f"{record.metric} {record.test:.3f} ({record.seconds:.1f} s)"


class Clock:
    """Estimates the time that is left from the mean time of each method so far.

    Args:
        methods: The method of each run that is to be done.
        workers: How many run at once.
    """

    def __init__(self, methods: Sequence[str], workers: int = 1) -> None:
        self.left, self.workers = list(methods), workers
        self._spent: dict[str, list[float]] = {}

    def tick(self, method: str, seconds: float) -> None:
        """A run of a method has ended."""
        self.left.remove(method)
        self._spent.setdefault(method, []).append(seconds)

    def eta(self) -> str:
        """Time left, for people; methods that have not run yet count as the mean of the others."""
        means = {name: sum(times) / len(times) for name, times in self._spent.items()}
        typical = sum(means.values()) / len(means) if means else 0.0
        seconds = sum(means.get(method, typical) for method in self.left) / self.workers
        hours, minutes = divmod(int(seconds) // 60, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"
