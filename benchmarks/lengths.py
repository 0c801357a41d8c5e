"""Write ``lengths.json``: how long the rows of the public tasks are, as numbers alone.

    python benchmarks/lengths.py --root $MP2_DATA --encoder path/to/encoder --cache runs/cache

The file is committed, so the benchmarks time real length distributions without the data. It holds quantiles
of token counts and the shape of the option lists; no text and no token id.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import numpy as np

from mp2.data.encode import Encoded
from mp2.data.prepare import PreparedTask, prepare_suites
from mp2.model.checkpoint import Base

FILE = Path(__file__).parent / "lengths.json"
QUANTILES = 32
ROWS = 2000


def facts(task: PreparedTask) -> dict[str, object]:
    """Lengths of a sample of the rows of a task's train split, and the shape of their options."""
    split = task.split("train")
    chosen = np.random.default_rng(0).permutation(len(split))[:ROWS].tolist()
    rows: list[Encoded] = split.take(chosen)
    windows = [window for row in rows for window in row.windows]
    levels = np.linspace(0, 1, QUANTILES + 1)
    options = [
        last - first + 1 for window in windows for _, first, last in window.options
    ]  # tokens of each option
    return {
        "rows": len(split),
        "windows": round(len(windows) / len(rows), 3),
        "options": int(median(len(window.options) for window in windows)),
        "option_tokens": int(median(options)) if options else 0,
        "lengths": [int(x) for x in np.quantile([len(window.ids) for window in windows], levels)],
    }


def main() -> None:
    """Read the prepared splits and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--encoder", type=Path, required=True, help="encoder whose tokenizer counts")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of the prepared data")
    parser.add_argument("--suite", default="pretrain-38")
    arguments = parser.parse_args()
    base = Base(arguments.encoder)
    tasks = prepare_suites(
        [arguments.suite], arguments.root, base.encoder(), arguments.cache, splits=("train", "dev")
    )
    found = {name: facts(task) for name, task in tasks.items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    head = {"suite": arguments.suite, "positions": base.backbone.max_length, "quantiles": QUANTILES}
    FILE.write_text(f'{{"about": {json.dumps(head)},\n"tasks": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
