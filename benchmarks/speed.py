"""Speed of mp2 against the bare frozen encoder, the released way and PEFT, on rows of real lengths.

    python benchmarks/speed.py --quick --json          # under eight minutes on two cores
    python benchmarks/speed.py --size 6x512            # one size, all cells and tasks, more rounds
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
from workload import SIZES, Shape, chosen, random_base, shapes

from mp2.runtime import keep_freed_memory

# Five tasks that pad as all 29 do: a batch of the released way as it comes holds 2.07 tokens (padding and
# slots counted) for one real token; over all tasks it is 2.12.
FEW = ("chip-sts", "xnli", "toutiao-tc", "cluewsc", "dureader-robust")
ONE = ("cluewsc",)  # 2.2, and nearly as long as a task is on average
QUICK_CELLS = ("pretrain_step", "fewshot_step", "evaluation", "mixed_tasks", "blackbox")
QUICK_SECOND = ("pretrain_step", "evaluation")  # of the second encoder
QUICK_BUDGET = 20.0  # seconds of a cell, warm-up counted; three rounds are run where the next line allows
QUICK_LIMIT = 55.0  # seconds after which no further round of a cell begins
QUICK_STOP = 270.0  # seconds after which no cell begins but the four that the JSON line needs
NEEDED = ("mp2", "bare", "released", "single")
RIVALS = {
    "bare": "vs_bare",
    "released": "vs_released",
    "single": "vs_single_task",
    "peft-prefix": "vs_peft_prefix",
    "peft-prompt": "vs_peft_prompt",
}


def ratios(timed: Timed) -> dict[str, float]:
    """Median ratio to each rival; ``bf16_...`` of mp2 in bf16, to a bare encoder in bf16 and the others."""
    found = {key: round(timed.ratio(name)[0], 3) for name, key in RIVALS.items() if name in timed.seconds}
    if "mp2 bf16" in timed.seconds:
        for name, key in RIVALS.items():
            rival = f"{name} bf16" if f"{name} bf16" in timed.seconds else name
            if rival in timed.seconds:
                found[f"bf16_{key}"] = round(timed.ratio(rival, "mp2 bf16")[0], 3)
    return found


def lines(size: str, cell: str, timed: Timed) -> list[str]:
    """Lines of the table: one per way of doing it."""
    made = []
    for name in timed.seconds:
        seconds = timed.median(name)
        ratio = "1" if name == "mp2" else "{:.2f} ({:.2f} to {:.2f})".format(*timed.ratio(name))
        made.append(
            f"{size:10} {cell:14} {name:12} {timed.samples / seconds:10,.0f} {timed.tokens / seconds:12,.0f}"
            f"  {ratio}"
        )
    return made


def plan(arguments: argparse.Namespace, *, first: bool) -> tuple[tuple[str, ...], list[Shape]]:
    """Cells and tasks of a size."""
    if not arguments.quick:
        return tuple(arguments.cell or CELLS), shapes()
    cells = arguments.cell or (QUICK_CELLS if first else QUICK_SECOND)
    return tuple(cells), chosen(FEW if first else ONE)


def measure(size: str, arguments: argparse.Namespace, begin: float, *, first: bool) -> dict[str, Timed]:
    """All cells of one size."""
    found: dict[str, Timed] = {}
    cells, tasks = plan(arguments, first=first)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", SIZES[size], arguments.device)
        rivals = not arguments.without_rivals
        bench = Bench(size, base, tasks, rivals=rivals, precision=arguments.precision)
        for name in cells:
            late = arguments.quick and time.perf_counter() - begin > QUICK_STOP
            if late and not (first and name in QUICK_CELLS[:4]):
                print(f"{size}: {name} left out, this machine is slow", file=sys.stderr)
                continue
            found[name] = interleave(
                CELLS[name](bench),
                budget=QUICK_BUDGET if arguments.quick else arguments.budget,
                limit=QUICK_LIMIT if arguments.quick else 1e9,
                needed=NEEDED,
                device=arguments.device,
            )
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
    keep_freed_memory()  # as a training does; rivals gain by it too
    print(f"{'encoder':10} {'cell':14} {'way':12} {'samples/s':>10} {'tokens/s':>12}  mp2 is x times faster")
    every = {
        size: {
            name: ratios(timed)
            for name, timed in measure(size, arguments, begin, first=size == sizes[0]).items()
        }
        for size in sizes
    }
    if arguments.json:
        print(json.dumps({**every.pop(sizes[0]), **every}))


if __name__ == "__main__":
    main()
