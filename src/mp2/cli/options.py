"""Options that commands of several files share."""

from __future__ import annotations

from typing import Annotated

import typer

LAST_SEED = 2**32 - 1  # NumPy takes no other
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=LAST_SEED)]
