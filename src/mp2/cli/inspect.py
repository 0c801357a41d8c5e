"""``mp2 inspect``: look into the routers of a bank or of an adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mp2.cli.options import Json, Model

if TYPE_CHECKING:
    from mp2.evaluation.inspect import Inspection
    from mp2.model.checkpoint import TrainedBank

SHADES = " ░▒▓█"


def inspect(
    what: Annotated[str, typer.Argument(help="Adapter folder, bank folder, or name of a bank of the base.")],
    model: Model = None,
    rows: Annotated[
        Path | None, typer.Option(help="Labelled rows: measure what the score loses without each module.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for heat-maps (PNG and SVG).")
    ] = None,
    json_: Json = False,
) -> None:
    """Show routers as heat-maps, the nearest upstream tasks, and the effect of taking a module out."""
    from mp2.errors import ConfigError
    from mp2.evaluation.inspect import inspect_adapter, inspect_bank
    from mp2.model.checkpoint import load_base
    from mp2.runtime import check_room, default_device
    from mp2.tuning.adapter import base_of, load_adapter
    from mp2.tuning.rows import labelled_rows

    if out is not None:
        check_room(out)  # taking modules out takes minutes
    adapter = load_adapter(what) if (Path(what) / "adapter.json").exists() else None
    base = load_base(model or (base_of(adapter) if adapter else None), default_device())
    if adapter is not None:
        examples = labelled_rows(rows, adapter.task)[1] if rows is not None else []
        found = [inspect_adapter(adapter, base, examples)]
        if out is not None:
            _draw_task(found[0], out)
    else:
        bank = base.bank(what)
        if rows is not None:
            raise ConfigError(f"--rows: modules are taken out of an adapter's router; {what} is a bank")
        if out is not None and min(len(bank.tasks), bank.bank.config.modules) < 2:
            shape = f"routers of {len(bank.tasks)} tasks over {bank.bank.config.modules} modules"
            raise ConfigError(f"--out: bank {what} has {shape}, too few to draw")
        found = inspect_bank(bank)
        if out is not None:
            _draw_bank(bank, out)
    if json_:
        print(json.dumps([item.as_dict() for item in found], ensure_ascii=False))
        return
    for item in found:
        _print(item, brief=len(found) > 1)


def _print(item: Inspection, *, brief: bool) -> None:
    near = ", ".join(f"{name} {likeness:+.2f}" for name, likeness in item.nearest)
    if brief:
        strip = "|".join("".join(_shade(gate) for gate in layer) for layer in item.gates)
        print(f"{item.task:20} {strip}  like {near}")
        return
    print(f"task {item.task}\nlike {near or 'no upstream task'}\n")
    modules = len(item.gates[0])
    print("layer  gates of modules 1 to " + str(modules))
    for number, layer in enumerate(item.gates, start=1):
        print(f"{number:5}  " + "  ".join(f"{_shade(gate)} {gate:.2f}" for gate in layer))
    used = ", ".join(f"{layer + 1}.{module + 1}" for layer, module in item.used)
    print(f"\nopen (layer.module): {used or 'none'}")
    if item.score is not None:
        of = " of the router, before prompts were tuned" if item.before_prompts else ""
        print(f"\nscore {item.score:.3f}{of}; what it loses without a module:")
        for number, drops in enumerate(item.knockouts, start=1):
            print(f"{number:5}  " + "  ".join(f"{drop:+.3f}" for drop in drops))


def _shade(gate: float) -> str:
    return SHADES[min(len(SHADES) - 1, int(gate * len(SHADES)))]


def _draw_task(item: Inspection, out: Path) -> None:
    from mp2.evaluation import drawing
    from mp2.evaluation.figures import heat_figure

    maps = [("gates", item.gates)] + ([("loss of score", item.knockouts)] if item.knockouts else [])
    for name, values in maps:
        with drawing.style():
            figure = heat_figure(values, f"{item.task}: {name}", signed=name != "gates")
        _write(out / f"{item.task}-{name.replace(' ', '-')}", drawing.png(figure), drawing.svg(figure))


def _draw_bank(bank: TrainedBank, out: Path) -> None:
    from mp2.evaluation import drawing
    from mp2.evaluation.figures import figure_5

    with drawing.style():
        figure = figure_5(bank)
    _write(out / f"{bank.name}-routers", drawing.png(figure), drawing.svg(figure))


def _write(stem: Path, png: bytes, svg: bytes) -> None:
    from mp2.runtime import write_whole

    for kind, content in (("png", png), ("svg", svg)):
        path = stem.with_name(f"{stem.name}.{kind}")  # a task's name may have dots
        write_whole(path, content)
        print(path, file=sys.stderr)  # standard output is for the text or JSON alone
