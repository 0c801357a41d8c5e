"""Other settings of a method's stages: ``lr.prompts=0.01`` or ``2.steps=64``, for a search or an ablation.

Decides what a setting may name and where it applies. A setting never changes the methods table: it makes a
variant, whose name stands in every record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from mp2.errors import ConfigError, nearest
from mp2.tuning.methods import Method
from mp2.tuning.stages import Gradient, Stage


def with_settings(methods: Iterable[Method], settings: Mapping[str, str]) -> tuple[Method, ...]:
    """Methods with settings of their stages replaced.

    Args:
        methods: Rows of the methods table.
        settings: ``FIELD`` of every stage that has it, ``lr.GROUP`` of every gradient stage that moves the
            group, or either of stage N alone (``N.FIELD``, from 1) -> value.

    Raises:
        ConfigError: A setting that no method here has (the nearest is named), or a value of another kind.
    """
    changed = tuple(methods)
    for name, value in sorted(settings.items(), key=_turn):
        names = list(dict.fromkeys(name for method in changed for name in _names(method)))
        if name not in names:  # or no longer: rounds take the calls away
            raise ConfigError(f"no method here has a setting {name!r}; {nearest(name, names, shown=40)}")
        changed = tuple(_changed(method, name, value) for method in changed)
    return changed


def _turn(setting: tuple[str, str]) -> tuple[bool, bool]:
    """Their order decides nothing: what is said of one stage holds there, and rounds take the calls away."""
    number, _, rest = setting[0].partition(".")
    return number.isdigit(), "rounds" not in (number, rest)


def _names(method: Method) -> Iterable[str]:
    """What can be set, first for all stages, then for one."""
    for number, stage in enumerate(method.stages, start=1):
        for name in _values(stage):
            yield name
            yield f"{number}.{name}"


def _values(stage: Stage) -> dict[str, Any]:
    """Settings of a stage that are a number, a truth value, a word or several numbers."""
    found = {item.name: getattr(stage, item.name) for item in fields(stage) if item.name != "groups"}
    kinds = (bool, int, float, str, tuple)
    simple = {name: value for name, value in found.items() if isinstance(value, kinds)}
    if simple.get("rounds"):
        del simple["calls"]  # which follow from them
    rates = {f"lr.{group}": rate for group, rate in stage.lr.items()} if isinstance(stage, Gradient) else {}
    return rates | simple


def _changed(method: Method, name: str, value: str) -> Method:
    number, _, rest = name.partition(".")
    only, field = (int(number), rest) if number.isdigit() else (0, name)
    stages = [
        _set(stage, field, value) if only in (0, place) and field in _values(stage) else stage
        for place, stage in enumerate(method.stages, start=1)
    ]
    return replace(method, stages=tuple(stages))


def _set(stage: Stage, field: str, value: str) -> Stage:
    parsed = _parsed(field, value, _values(stage)[field])
    if field.startswith("lr.") and isinstance(stage, Gradient):
        rates: Any = stage.lr | {field.removeprefix("lr."): parsed}
        return replace(stage, lr=rates)
    change: dict[str, Any] = {field: parsed}
    return replace(stage, **change)


def _parsed(name: str, text: str, old: Any) -> Any:
    """A value of the kind of the old one; several between commas."""
    if isinstance(old, tuple):
        return tuple(_parsed(name, part, old[0]) for part in text.split(","))
    if isinstance(old, bool):
        words = {"true": True, "false": False}
        if text.lower() in words:
            return words[text.lower()]
        raise ConfigError(f"setting {name}: expected true or false, got {text!r}")
    try:
        return type(old)(text)
    except ValueError:
        kind = "a whole number" if isinstance(old, int) else "a number"
        raise ConfigError(f"setting {name}: expected {kind}, got {text!r}") from None
