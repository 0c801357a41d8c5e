"""Records as results: what may stand in one table, and the scores of each cell.

Decides when records are too unlike to be compared (other models, other versions, other test rows) and which
seeds a comparison uses. Computes no statistics and draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mp2.errors import ConfigError
from mp2.evaluation.records import CALIBRATED, Record
from mp2.evaluation.statistics import Matrix
from mp2.tuning.methods import METHODS

Facet = Callable[[Record], tuple[str, str]]
Value = TypeVar("Value")
# Each gives a group and a value; within a group all records must have one value (empty: not recorded).
FACETS: dict[str, Facet] = {
    # a folder's name, not its place: the same model may be named by two paths
    "models": lambda r: ("", f"{Path(r.base).name} ({r.base_fingerprint})"),
    "banks": lambda r: (
        f"{r.variant}/{_bank(r)}",
        r.bank_fingerprint and f"{_bank(r)} {r.bank_fingerprint}",
    ),
    "package versions": lambda r: ("", str(r.versions.get("mp2"))),
    "method versions": lambda r: (r.method, f"{r.method} v{r.method_version}"),
    "settings": lambda r: (f"{r.variant}/{r.method}", r.settings and f"{r.method}: {_uncalibrated(r)}"),
    # by task: those without labels run as they are
    "calibration": lambda r: (
        f"{r.variant}/{r.method}/{r.task}",
        r.settings and f"{r.method} on {r.task}{'' if _uncalibrated(r) == r.settings else ', calibrated'}",
    ),
    "task versions": lambda r: (r.task, f"{r.task} v{r.task_version}"),
    "test rows": lambda r: (r.task, f"{r.task}: {r.test_rows} rows ({r.test_key})"),
    "few-shot draws": lambda r: (f"{r.task}/{r.seed}/{r.shots}", f"{r.task} seed {r.seed} ({r.draw})"),
    "test rows asked for": lambda r: (
        f"{r.variant}/{r.method}/{r.shots}/{r.task}/{r.seed}",
        f"{r.method} on {r.task}, seed {r.seed}, {r.test_limit or 'all'}",
    ),
}


def _bank(record: Record) -> str:
    """Name of the bank that a method starts from; of a method that is no longer known, its own."""
    method = METHODS.get(record.method)
    return (method and method.bank) or record.method


def _uncalibrated(record: Record) -> str:
    return record.settings.replace(CALIBRATED, "")


@dataclass(frozen=True, slots=True)
class Cell:
    """All seeds of one method on one task.

    Attributes:
        seeds: Seeds in ascending order.
        scores: ``(S, R)`` score of each test row.
        records: Their records, in the same order.
    """

    seeds: tuple[int, ...]
    scores: Matrix
    records: tuple[Record, ...]

    def only(self, seeds: Collection[int]) -> Cell:
        """The runs with some of its seeds."""
        chosen = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        picked = tuple(self.records[i] for i in chosen)
        return Cell(tuple(self.seeds[i] for i in chosen), self.scores[chosen], picked)


def mixtures(records: Iterable[Record]) -> list[str]:
    """What makes records unfit for one table, one line each; empty if nothing does."""
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in FACETS}
    for record in records:
        for name, facet in FACETS.items():
            group, value = facet(record)
            if not value:
                continue
            counts = found[name].setdefault(group, {})
            counts[value] = counts.get(value, 0) + 1
    lines = []
    for name, groups in found.items():
        for counts in groups.values():
            if len(counts) > 1:
                lines.append(f"{name}: " + ", ".join(f"{value}: {n} runs" for value, n in counts.items()))
    return list(dict.fromkeys(lines))


class Results:
    """Successful records by method and task.

    Args:
        records: Any records; failed ones are counted and left out.
        mixed: Accept records that :func:`mixtures` objects to; of two runs of one cell the later counts.

    Raises:
        ConfigError: The records are mixed, or none succeeded.
    """

    def __init__(self, records: Sequence[Record], *, mixed: bool = False) -> None:
        done = [record for record in records if record.status == "done"]
        if not done:
            raise ConfigError(f"none of the {len(records)} records is of a run that succeeded")
        self.objections = mixtures(done)
        if self.objections and not mixed:
            listed = "\n  ".join(self.objections[:8])
            raise ConfigError(
                f"these records do not belong in one table; pass --mixed to make it nevertheless:\n  {listed}"
            )
        self._done: dict[tuple[str, str, int | None, str], dict[int, Record]] = {}
        for r in done:
            self._done.setdefault((r.variant, r.method, r.shots, r.task), {})[r.seed] = r
        redone = {record.key for record in done}
        failed = {r.key: r for r in records if r.status == "failed" and r.key not in redone}
        self.failed = list(failed.values())  # the last time of each
        self.records = [r for cell in self._done.values() for r in cell.values()]

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants, the plain one ('') included."""
        return tuple(dict.fromkeys(variant for variant, _, _, _ in self._done))

    def methods(self, variant: str = "") -> tuple[str, ...]:
        """Methods of a variant, in the order in which they ran."""
        return tuple(dict.fromkeys(m for v, m, _, _ in self._done if v == variant))

    def tasks(self, variant: str = "") -> tuple[str, ...]:
        """Tasks of a variant, in the order in which they ran."""
        return tuple(dict.fromkeys(t for v, _, _, t in self._done if v == variant))

    def cells(self, tasks: Iterable[str], variant: str = "") -> dict[str, dict[str, Cell]]:
        """Method -> task -> its cell with the protocol's own shots; nothing where there is none."""
        found = {
            m: {t: c for t in tasks if (c := self.cell(m, t, variant=variant))} for m in self.methods(variant)
        }
        return {method: row for method, row in found.items() if row}

    def shots(self, method: str, task: str, variant: str = "") -> tuple[int, ...]:
        """Numbers of shots other than the protocol's, ascending."""
        return tuple(sorted(s for v, m, s, t in self._done if s and (v, m, t) == (variant, method, task)))

    def cell(
        self,
        method: str,
        task: str,
        *,
        variant: str = "",
        shots: int | None = None,
    ) -> Cell | None:
        """The runs of one method on one task; None if there is none.

        Args:
            method: The method.
            task: The task.
            variant: The ablation.
            shots: Rows per label; None is the protocol's own.
        """
        found = self._done.get((variant, method, shots, task), {})
        chosen = sorted(found)
        if not chosen:
            return None
        usual = most_common(found[seed].test_rows for seed in chosen)  # where mixed records are accepted
        chosen = [seed for seed in chosen if found[seed].test_rows == usual]
        rows = tuple(found[seed] for seed in chosen)
        return Cell(tuple(chosen), np.array([row.row_scores for row in rows]), rows)


def most_common(values: Iterable[Value]) -> Value:
    """The value that stands most often, at ties the first."""
    return Counter(values).most_common(1)[0][0]
