"""Which method tunes a task where nobody names one (docs/decisions/0010, 0019)."""

from __future__ import annotations

from mp2.model.checkpoint import Base
from mp2.tasks import catalogue
from mp2.tasks.spec import TaskSpec
from mp2.tuning.methods import DEFAULT_METHOD, METHODS, NEW_LABELS_METHOD, Method


def default_method(base: Base, task: TaskSpec) -> Method:
    """The row for labels that the base was never taught where a task has such, else that for all others."""
    return METHODS[NEW_LABELS_METHOD if knows_no_label(base, task) else DEFAULT_METHOD]


def knows_no_label(base: Base, task: TaskSpec) -> bool:
    """Whether a task has labels, and none of them is a label of a task that the base's deep bank was taught.

    False also where that cannot be told, as the bank names tasks that the catalogue lacks.
    """
    bank = METHODS[DEFAULT_METHOD].bank
    if not task.labels or bank not in base.banks:
        return False
    taught = base.bank(bank).tasks
    return set(taught) <= set(catalogue.names()) and all(
        set(task.labels).isdisjoint(catalogue.get(name).labels) for name in taught
    )
