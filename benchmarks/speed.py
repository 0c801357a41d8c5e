"""Speed of mp2 against the bare frozen encoder, the released way and PEFT, on rows of real lengths.

    python benchmarks/speed.py --quick --json          # under eight minutes on two cores
    python benchmarks/speed.py --size 6x512            # one size, all cells, more rounds
    python benchmarks/speed.py --size cpt-large --device cuda --precision bf16

Prints a table; with ``--json`` its last line is one JSON object of throughput ratios, above 1 where mp2 is
faster. A ratio is the median over interleaved rounds; the table also has the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from cells import CELLS, Bench
from timing import Timed, interleave, machine
from workload import SIZES, random_base

QUICK_BUDGET = 20.0  # seconds per cell, warm-up counted; three rounds are run in any case
QUICK_CELLS = {"6x512": ("pretrain_step", "evaluation")}
QUICK_STOP = 200.0  # seconds after which a slow machine leaves the second encoder's cells out
RIVALS = {
    "bare": "vs_bare",
    "released": "vs_released",
    "single": "vs_single_task",
    "peft-prefix": "vs_peft_prefix",
    "peft-prompt": "vs_peft_prompt",
}


def ratios(timed: Timed) -> dict[str, float]:
    """Median ratio to each rival."""
    return {key: round(timed.ratio(name)[0], 3) for name, key in RIVALS.items() if name in timed.seconds}


def lines(size: str, cell: str, timed: Timed) -> list[str]:
    """Lines of the table: one per way of doing it."""
    made = []
    for name in timed.seconds:
        seconds = timed.median(name)
        ratio = "1" if name == "mp2" else "{:.2f} ({:.2f} to {:.2f})".format(*timed.ratio(name))
        made.append(
            f"{size:10} {cell:14} {name:20} {timed.samples / seconds:10,.0f} {timed.tokens / seconds:12,.0f}"
            f"  {ratio}"
        )
    return made


def measure(size: str, arguments: argparse.Namespace, begin: float) -> dict[str, Timed]:
    """All cells of one size."""
    found: dict[str, Timed] = {}
    first = size in ("shipped", "micro")
    tasks, bands = (3 if first else 1, 4 if first else 2) if arguments.quick else (6, 4)
    cells = arguments.cell or (QUICK_CELLS.get(size) if arguments.quick else None) or CELLS
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", SIZES[size], arguments.device)
        rivals = not arguments.without_rivals
        bench = Bench(size, base, tasks=tasks, bands=bands, rivals=rivals, precision=arguments.precision)
        for name in cells:
            if arguments.quick and not first and time.perf_counter() - begin > QUICK_STOP:
                print(f"{size}: {name} left out, this machine is slow", file=sys.stderr)
                continue
            budget = QUICK_BUDGET if arguments.quick else arguments.budget
            found[name] = interleave(CELLS[name](bench), budget=budget, device=arguments.device)
            print("\n".join(lines(size, name, found[name])), flush=True)
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
    parser.add_argument("--budget", type=float, default=120.0, help="seconds per cell, warm-up counted")
    parser.add_argument("--without-rivals", action="store_true", help="only mp2 and the bare encoder")
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    sizes = arguments.size or ["shipped", "6x512"]
    facts = machine(arguments.device)
    print(json.dumps(facts), file=sys.stderr)
    print(f"{'encoder':10} {'cell':14} {'way':20} {'samples/s':>10} {'tokens/s':>12}  mp2 is x times faster")
    every = {
        size: {name: ratios(timed) for name, timed in measure(size, arguments, begin).items()}
        for size in sizes
    }
    if arguments.json:
        print(json.dumps({**every.pop(sizes[0]), **every}))


if __name__ == "__main__":
    main()
