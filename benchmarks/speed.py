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
from pathlib import Path
from typing import Any

from cells import CELLS, Bench
from timing import Timed, interleave, machine
from workload import SIZES, random_base

QUICK = {"shipped": 35.0, "6x512": 20.0}
RIVALS = {"bare": "vs_bare", "released": "vs_released", "single": "vs_single_task", "peft": "vs_peft"}


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


def measure(size: str, arguments: argparse.Namespace, budget: float) -> dict[str, Timed]:
    """All cells of one size."""
    found: dict[str, Timed] = {}
    small = arguments.quick and size != "shipped"
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", SIZES[size], arguments.device)
        bench = Bench(
            size,
            base,
            tasks=2 if small or size == "micro" else 6,
            bands=2 if small or size == "micro" else 4,
            released=not arguments.without_released,
            precision=arguments.precision,
        )
        for name in arguments.cell or CELLS:
            runs, samples, tokens = CELLS[name](bench)
            found[name] = interleave(
                runs, samples=samples, tokens=tokens, budget=budget, device=arguments.device
            )
            for line in lines(size, name, found[name]):
                print(line, flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="both CPU sizes in under eight minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
    parser.add_argument("--size", action="append", choices=sorted(SIZES), help="encoder size; may repeat")
    parser.add_argument("--cell", action="append", choices=sorted(CELLS), help="what to time; may repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--budget", type=float, default=120.0, help="seconds per cell, warm-up not counted")
    parser.add_argument("--without-released", action="store_true", help="leave the released way out")
    arguments = parser.parse_args(argv)
    sizes = arguments.size or ["shipped", "6x512"]
    facts = machine(arguments.device)
    print(json.dumps(facts), file=sys.stderr)
    print(f"{'encoder':10} {'cell':14} {'way':20} {'samples/s':>10} {'tokens/s':>12}  mp2 is x times faster")
    result: dict[str, Any] = {}
    for number, size in enumerate(sizes):
        budget = QUICK.get(size, 20.0) if arguments.quick else arguments.budget
        found = {name: ratios(timed) for name, timed in measure(size, arguments, budget).items()}
        if number == 0:
            result = {**found, "encoder": size, "machine": facts}
        else:
            result[size] = found
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
