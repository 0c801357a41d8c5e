"""Preparing a file of gigabytes: rows, time and peak memory.

    python benchmarks/large_file.py                    # a generated CSV of 2 GB; half an hour of one core
    python benchmarks/large_file.py --gigabytes 0.01

Memory must not follow the size of the file: rows are read, encoded and written in a stream.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import tempfile
import time
from pathlib import Path

from mp2.data.encode import Encoder
from mp2.data.prepare import prepare
from mp2.model.backbone import load_tokenizer
from mp2.model.checkpoint import ASSETS, DEFAULT_BASE
from mp2.tasks.spec import parse_task

WORDS = re.findall("..", "咖啡手机公司服务学生老师电影音乐故事天气北京上海问题答案味道时间朋友孩子文章城市")
TASK = """
name: large
family: classification
labels: [负面, 正面]
coding: {'0': 负面, '1': 正面}
data:
  folder: large
  source: invented
  licence: none
  suites: [large]
  files:
    all: {path: all.csv, format: csv}
  layouts:
    - splits: {train: {files: all}}
"""


def write(path: Path, size: float) -> None:
    """A CSV of at least ``size`` bytes; every row has its own number, so that none is a copy."""
    generator = random.Random(0)
    phrases = ["".join(generator.choices(WORDS, k=40)) for _ in range(20_000)]
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        written = file.write("text,label\n")
        number = 0
        while written < size:
            row = f"{number}{'，'.join(generator.choices(phrases, k=12))},{number % 2}\n"
            written += len(row.encode())
            file.write(row)
            number += 1


def main() -> None:
    """Write, prepare, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    arguments = parser.parse_args()
    encoder = Encoder(load_tokenizer(ASSETS / DEFAULT_BASE / "encoder"), 256)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "large" / "all.csv", arguments.gigabytes * 1e9)
        wall, processor = time.perf_counter(), time.process_time()
        found = prepare([parse_task(TASK)], root, encoder, root / "cache", protect=[])["large"]
        report = found.reports["train"]
        print(f"{report.read:,} rows read, {report.kept:,} kept")
        print(f"{time.perf_counter() - wall:.0f} s, of the processor {time.process_time() - processor:.0f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
