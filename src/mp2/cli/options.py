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
        ConfigError: One has no equals sign.
    """
    from mp2.errors import ConfigError

    for value in values:
        if "=" not in value:
            raise ConfigError(f"{option}: expected {form}, got {value!r}")
    return {name: after for name, _, after in (value.partition("=") for value in values)}
