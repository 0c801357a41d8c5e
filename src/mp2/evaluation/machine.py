"""Facts of the machine and the code that made a record: versions, processor, peak memory.

Decides what is written down; compares nothing.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20


@cache
def git_version() -> str | None:
    """Commit of the package's source, with ``-dirty`` for uncommitted changes; None outside a checkout."""
    git, package = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None
    try:
        tracked = [git, "-C", str(package), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)  # noqa: S603
        command = [git, "-C", str(package), "describe", "--always", "--dirty", "--abbrev=10"]
        done = subprocess.run(command, capture_output=True, check=True, timeout=10, text=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@cache
def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory and accelerator of this machine."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "device": device,
    }
    if device.startswith("cuda"):
        facts["accelerator"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def reset_peak(device: str) -> None:
    """Begin to measure peak memory anew, where the system allows it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM on Linux
    except OSError:
        return


def peak_memory(device: str) -> dict[str, int]:
    """Peak memory in MiB: of the process, and of the accelerator's tensors where there is one."""
    peak = {"process_mib": _high_water() // MIB}
    if device.startswith("cuda"):
        peak["device_mib"] = torch.cuda.max_memory_allocated(device) // MIB
    return peak


def _high_water() -> int:
    """Bytes the process had in memory at most since the last reset (elsewhere than on Linux: ever)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
