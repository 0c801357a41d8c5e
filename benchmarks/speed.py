"""Speed of mp2 against the bare frozen encoder, the released way and PEFT, on rows of real lengths.

    python benchmarks/speed.py --quick --json          # under eight minutes on two cores
    python benchmarks/speed.py --size 6x512            # one size, all cells and tasks, more rounds
    python benchmarks/speed.py --size cpt-large --device cuda --precision bf16

Prints a table; with ``--json`` its last line is one JSON object of throughput ratios, above 1 where mp2 is
faster. A ratio is the median over interleaved rounds, the lowest and the highest of which stand beside it.

TFLOP/s count what the bare encoder would multiply for the same tokens, whoever does the work and whatever he
spares; ``of rate`` is their share of what a large matrix product of the same precision reaches here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from bench import CARD_ROWS, CARD_TOKENS, ROWS, TOKENS, Bench
from cells import CELLS
from timing import Timed, interleave, machine, matrix_rates
from workload import SIZES, Shape, chosen, random_base, shapes

from mp2.runtime import keep_freed_memory

# Five tasks that pad as all 29 do: a batch of the released way as it comes holds 2.07 tokens (padding and
# slots counted) for one real token; over all tasks it is 2.12.
FEW = ("chip-sts", "xnli", "toutiao-tc", "cluewsc", "dureader-robust")
ONE = ("cluewsc",)  # 2.2, and nearly as long as a task is on average
QUICK_CELLS = ("pretrain_step", "fewshot_step", "evaluation", "mixed_tasks", "blackbox")
QUICK_SECOND = ("pretrain_step", "evaluation", "mixed_tasks")  # of the second encoder
QUICK_BUDGET = 20.0  # seconds of a cell, warm-up counted; three rounds are run where the next line allows
QUICK_LIMIT = 55.0  # seconds after which no further round of a cell begins
QUICK_STOP = 300.0  # seconds after which no cell begins but the four that the JSON line needs
NEEDED = ("mp2", "bare", "released", "single")
RIVALS = {
    "bare": "vs_bare",
    "released": "vs_released",
    "released tf32": "vs_released_tf32",
    "single": "vs_single_task",
    "peft-prefix": "vs_peft_prefix",
    "peft-prompt": "vs_peft_prompt",
}


def ratios(timed: Timed, way: str) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest ratio of a way of ours to each rival, in its precision if they know it."""
    suffix = " bf16" if way.endswith(" bf16") else ""
    return {
        key: timed.ratio(name + suffix if name + suffix in timed.seconds else name, way)
        for name, key in RIVALS.items()
        if {name, name + suffix} & timed.seconds.keys()
    }


def every_ratio(timed: Timed) -> dict[str, tuple[float, float, float]]:
    """The same of all our ways: ``vs_bare`` and so on, ``bf16_vs_bare`` of ``mp2 bf16``."""
    ours = [way for way in timed.seconds if way.split()[0] == "mp2"]
    return {
        "_".join([*way.split()[1:], key]): ratio for way in ours for key, ratio in ratios(timed, way).items()
    }


def speeds(timed: Timed, rates: Mapping[str, float], precision: str) -> dict[str, dict[str, float]]:
    """Throughput of every way, and its share of the matrix rate in its precision."""
    found = {}
    for way in timed.seconds:
        seconds = timed.median(way)
        found[way] = {
            "samples_per_second": round(timed.samples / seconds, 1),
            "tokens_per_second": round(timed.tokens / seconds),
        }
        last = way.split()[-1]
        rate = rates.get(last if last in rates else "fp32" if way == "released" else precision)
        if timed.flops:
            found[way]["tflops"] = round(timed.flops / seconds / 1e12, 4)
        if timed.flops and rate:
            found[way]["of_rate"] = round(timed.flops / seconds / rate, 3)
    return found


def lines(size: str, cell: str, timed: Timed, measured: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines of the table: one per way of doing it."""
    for way, speed in measured.items():
        against = ""
        if way.split()[0] == "mp2":
            found = ratios(timed, way).items()
            against = ", ".join(
                f"{k.removeprefix('vs_')} {m:.2f} ({a:.2f} to {b:.2f})" for k, (m, a, b) in found
            )
        counted = f"{timed.flops / timed.tokens / 1e6:.2f}" if timed.flops else "-"
        tflops, share = (f"{speed[key]:.3f}" if key in speed else "-" for key in ("tflops", "of_rate"))
        yield (
            f"{size:10} {cell:14} {way:16} {speed['samples_per_second']:10,.0f}"
            f" {speed['tokens_per_second']:10,} {counted:>8} {tflops:>8} {share:>8}  {against}"
        )


def plan(arguments: argparse.Namespace, *, first: bool) -> tuple[tuple[str, ...], list[Shape]]:
    """Cells and tasks of a size."""
    if not arguments.quick:
        return tuple(arguments.cell or CELLS), shapes()
    cells = arguments.cell or (QUICK_CELLS if first else QUICK_SECOND)
    return tuple(cells), chosen(FEW if first else ONE)


def measure(
    size: str, arguments: argparse.Namespace, rates: Mapping[str, float], begin: float, *, first: bool
) -> dict[str, dict[str, Any]]:
    """All cells of one size: of each the ratios, their ranges and the speeds."""
    found: dict[str, dict[str, Any]] = {}
    cells, tasks = plan(arguments, first=first)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", SIZES[size], arguments.device)
        bench = Bench(
            size,
            base,
            tasks,
            rivals=not arguments.without_rivals,
            precision=arguments.precision,
            rows=arguments.rows,
            tokens=arguments.tokens,
        )
        for name in cells:
            late = arguments.quick and time.perf_counter() - begin > QUICK_STOP
            if late and not (first and name in QUICK_CELLS[:4]):
                print(f"{size}: {name} left out, this machine is slow", file=sys.stderr)
                continue
            timed = interleave(
                CELLS[name](bench),
                budget=QUICK_BUDGET if arguments.quick else arguments.budget,
                most=arguments.rounds,
                limit=QUICK_LIMIT if arguments.quick else 1e9,
                needed=NEEDED,
                device=arguments.device,
            )
            every = every_ratio(timed)
            found[name] = {
                "ratios": {key: round(ratio[0], 3) for key, ratio in every.items()},
                "ranges": {key: [round(x, 3) for x in ratio[1:]] for key, ratio in every.items()},
                "ways": speeds(timed, rates, arguments.precision),
            }
            print("\n".join(lines(size, name, timed, found[name]["ways"])), flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less work, in under eight minutes on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--size", action="append", choices=sorted(SIZES), help="encoder size; may repeat")
    parser.add_argument("--cell", action="append", choices=sorted(CELLS), help="what to time; may repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rows", type=int, help=f"rows of a batch; {ROWS}, on a card {CARD_ROWS}")
    parser.add_argument("--tokens", type=int, help=f"tokens of a batch; {TOKENS}, on a card {CARD_TOKENS}")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds per cell, warm-up counted")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a cell at most")
    parser.add_argument("--without-rivals", action="store_true", help="only mp2 and the bare encoder")
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    sizes = arguments.size or ["shipped", "6x512"]
    on_card = torch.device(arguments.device).type == "cuda"
    arguments.rows = arguments.rows or (CARD_ROWS if on_card else ROWS)
    arguments.tokens = arguments.tokens or (CARD_TOKENS if on_card else TOKENS)
    rates = matrix_rates(arguments.device)
    print(json.dumps(machine(arguments.device, rates)), file=sys.stderr)
    keep_freed_memory()  # as a training does; rivals gain by it too
    print(
        f"{'encoder':10} {'cell':14} {'way':16} {'samples/s':>10} {'tokens/s':>10} {'MFLOP/t':>8}"
        f" {'TFLOP/s':>8} {'of rate':>8}  mp2 is x times as fast as"
    )
    every = {size: measure(size, arguments, rates, begin, first=size == sizes[0]) for size in sizes}
    if arguments.json:
        found = {
            size: {name: cell.pop("ratios") for name, cell in cells.items()} for size, cells in every.items()
        }
        print(json.dumps({**found.pop(sizes[0]), **found, "measured": every}))


if __name__ == "__main__":
    main()
