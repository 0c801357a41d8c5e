"""What a run needs from its machine, on a machine that is really there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mp2 import runtime

HOLES = """
import random, numpy
from pathlib import Path
from mp2.runtime import release_free_memory

def held():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])

random.seed(0)
arrays = [numpy.ones(10_000) for _ in range(2_000)]  # 160 MB in pieces that lie in the heap
arrays = arrays[::100]
before = held()
release_free_memory()
print(before, held())
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only glibc keeps holes in its heap that it can give back"
)
def test_free_memory_between_used_pieces_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before - 100_000


@pytest.mark.parametrize(("device", "expected"), [("cpu", ["keep", "work", "release"]), ("cuda:0", ["work"])])
def test_kept_memory_is_given_back_however_the_work_ends(
    device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: seen.append("keep"))
    monkeypatch.setattr(runtime, "release_free_memory", lambda: seen.append("release"))
    with pytest.raises(KeyboardInterrupt), runtime.freed_memory_kept(device):
        seen.append("work")
        raise KeyboardInterrupt
    assert seen == expected
