"""Options that commands of several files share, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

LAST_SEED = 2**32 - 1  # NumPy takes no other
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Model = Annotated[str | None, typer.Option(help="Base folder or hub name; the shipped model by default.")]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(help="bf16 is quicker where the processor or card knows it; results differ by rounding."),
]
Refit = Annotated[
    bool,
    typer.Option(
        "--refit", help="Then learn again from train and dev rows, for as long as the dev rows said."
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate", help="First fit one number per label to the train rows, added to its score; then tune."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=LAST_SEED)]


def pairs(option: str, form: str, values: list[str]) -> dict[str, str]:
    """Values of the form ``NAME=VALUE`` as a dictionary.

    Raises:
        ConfigError: One has no equals sign, or a name stands twice.
    """
    from mp2.errors import ConfigError

    found: dict[str, str] = {}
    for value in values:
        name, equals, after = value.partition("=")
        if not equals:
            raise ConfigError(f"{option}: expected {form}, got {value!r}")
        if name in found:
            raise ConfigError(f"{option}: {name} stands twice, as {found[name]!r} and {after!r}")
        found[name] = after
    return found
