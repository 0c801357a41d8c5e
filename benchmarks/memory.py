"""Peak memory of a step of step 2 against batch, length and layers, and the formula that predicts it.

    python benchmarks/memory.py                 # 4 x 256, and around it
    python benchmarks/memory.py --large         # and CPT-large's shape with random weights, a minute more
    python benchmarks/memory.py --fits          # no measurement: what fits on 8, 24 and 80 GB

Every point runs in a process of its own whose allocator returns what is freed, so the kernel's high-water
mark (VmHWM, reset before the step) is the peak of what was in use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from workload import INTRINSIC, LENGTH, MODULES, SIZES, Shape, Size, random_base

GB, MB = 1e9, 1e6
# A layer whose weights are frozen keeps, per token and unit of width: queries, keys, values and what
# attention gave (4), the inputs of two layer norms (2) and of the activation function (4). While a layer's
# backward pass runs, gradients of its wide part (4 + 4) and of its narrow one (2) live beside them. Plain
# attention, which is the quicker one on a processor, keeps its shares too: a number for each head, token and
# token that is seen, and another while its backward pass runs.
KEPT, WORKING = 10, 10


@dataclass(frozen=True)
class Point:
    """One measurement: the encoder, rows of one length, and whether activations are computed again."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    rows: int
    length: int
    recompute: bool = False


def activations(point: Point, wide: float = 4.0, narrow: float = 4.0, *, plain: bool = False) -> float:
    """Bytes that forward and backward hold at once, by formula.

    Args:
        point: What is run.
        wide: Bytes of a number inside a layer (4 for fp32, 2 under bf16 autocast).
        narrow: Bytes of a number between layers and at the layer norms (fp32 under autocast too).
        plain: Whether attention is plain, as on a processor; a card's kernels keep no shares.
    """
    norms, inside = 2, KEPT - 2
    layer = inside * wide + norms * narrow
    kept = narrow * point.layers + layer if point.recompute else layer * point.layers
    shares = point.rows * point.heads * point.length * (point.length + LENGTH) * wide if plain else 0.0
    held = shares * (2 if point.recompute else point.layers)
    return point.rows * point.length * point.hidden * (kept + WORKING * wide) + held


def static(point: Point) -> float:
    """Bytes of weights (fp32), and of a factored bank with its gradient and AdamW's two moments."""
    h = point.hidden
    weights = point.layers * (12 * h * h + 13 * h) + (point.vocabulary + 514) * h
    bank = point.layers * INTRINSIC * (MODULES + LENGTH * h)
    return 4 * weights + 16 * bank


def status(name: str) -> float:
    """Bytes of a line of the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))


def measure_here(point: Point) -> dict[str, float]:
    """Peak of one step above what was held before it, in this process."""
    from cells import multitask_trainer

    from mp2.training.multitask import MultiTaskConfig

    size = Size(point.layers, point.hidden, point.heads, point.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(Path(folder) / "base", size)
    shape = Shape("invented", 2, 1, (point.length, point.length))
    rng = np.random.default_rng(0)
    few, all_ = (shape.rows(shape.draw(rows, rng), rng, point.vocabulary) for rows in (1, point.rows))
    config = MultiTaskConfig(recompute=point.recompute)
    trainer = multitask_trainer(base, [[few], [all_]], config)
    trainer.one_step()  # the optimiser's moments, and code that is loaded on first use
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    trainer.one_step()
    return {"peak": status("VmHWM") - before, "held": before}


def measure(point: Point) -> dict[str, float]:
    """Measure a point in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def points() -> Iterator[Point]:
    """Batch, length and layers, one at a time, from one middle."""
    middle = Point(4, 256, 4, 20_000, rows=32, length=128)
    yield from (replace(middle, rows=rows) for rows in (8, 16, 32, 64))
    yield from (replace(middle, length=length) for length in (32, 64, 256))
    yield from (replace(middle, layers=layers) for layers in (2, 8, 16))
    yield from (replace(middle, layers=layers, recompute=True) for layers in (4, 16))


def large() -> Iterator[Point]:
    """CPT-large's shape."""
    middle = Point(24, 1024, 16, 21_128, rows=4, length=128)
    yield from (middle, replace(middle, rows=8), replace(middle, rows=8, recompute=True))


def fits() -> None:
    """Tokens of a batch that fit beside weights and bank of CPT-large's shape, by formula."""
    size = SIZES["cpt-large"]
    one = Point(size.layers, size.hidden, size.heads, size.vocabulary, rows=1, length=1)
    print(f"CPT-large: weights, bank and optimiser {static(one) / GB:.2f} GB")
    print(f"{'card':>6} {'precision':>9} {'tokens':>10} {'with recompute':>15}")
    for card in (8, 24, 80):
        for precision, wide in (("fp32", 4.0), ("bf16", 2.0)):
            free = card * GB - static(one) - 1.0 * GB  # a gigabyte for the context and the libraries
            counts = [free / activations(replace(one, recompute=flag), wide) for flag in (False, True)]
            print(f"{card:4}GB {precision:>9} {counts[0]:10,.0f} {counts[1]:15,.0f}")


def main() -> None:
    """Measure and print, or say what fits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="CPT-large's shape too")
    parser.add_argument("--fits", action="store_true", help="only what fits, by formula")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure_here(Point(**json.loads(arguments.point)))))
        return
    if not arguments.fits:
        print(
            f"{'layers':>6} {'width':>6} {'rows':>5} {'length':>6} {'again':>6} {'peak MB':>8} {'formula':>8}"
        )
        for point in [*points(), *(large() if arguments.large else ())]:
            found = measure(point)
            print(
                f"{point.layers:6} {point.hidden:6} {point.rows:5} {point.length:6} {point.recompute!s:>6}"
                f" {found['peak'] / MB:8,.0f} {activations(point, plain=True) / MB:8,.0f}",
                flush=True,
            )
    fits()


if __name__ == "__main__":
    main()
