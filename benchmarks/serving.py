"""The server under load: throughput and latency against offered load, for one task and for thousands.

    python benchmarks/serving.py --quick --json

A real ``mp2 serve`` process, asked over loopback by another process (``load.py``). Tasks are distinct router
rows over the shipped bank. What is measured:

* ladder: open-loop load (Poisson arrivals) in steps up to what the server can take, for 1, 100, 1,000 and
  10,000 tasks. A step is held when at least 99 % of what arrived was answered within the deadline;
* one at a time: the load that was held, against the same server with batches of one row;
* thousand tasks against one: saturated throughput, in turns;
* memory: resident memory before and after tasks were first asked for, per task;
* overload: twice the saturated throughput for a minute (``--quick``: 15 s).

The last line is JSON: the highest load held with 1,000 tasks and its p99 latency, the two ratios, and
server errors (5xx, broken and hanging connections) and refusals (429) of the whole run.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from load import Plan
from safetensors.torch import save_file

from mp2.evaluation.machine import git_version, machine_facts
from mp2.model.checkpoint import ASSETS, Base, load_base
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter

TEXTS = ASSETS / "demo" / "gym-reviews" / "train.csv"
TASK = TaskSpec(name="reviews", family="classification", labels=("好评", "差评"))
BANK = "deep"
COUNTS = (1, 100, 1000, 10_000)
HELD = 0.99
SATURATING = 64  # clients of a closed loop: one full batch
DEADLINE_MS = 1000
COLUMNS = ("offered", "answered", "p50_ms", "p99_ms", "max_ms", "refused", "server_errors", "behind_p99_ms")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: seconds of a step, steps as shares of saturation, rounds of a ratio, overload."""

    step: float
    steps: tuple[float, ...]
    rounds: int
    overload: float


QUICK = Effort(4.0, (0.6, 0.8, 0.9, 1.0), 2, 15.0)
FULL = Effort(12.0, (0.25, 0.5, 0.7, 0.8, 0.9, 1.0), 3, 60.0)


@dataclass(slots=True)
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def memory(self) -> int:
        """Bytes of resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def ask_once(self, tasks: range) -> None:
        """Ask every task once, a batch in a request: loads and composes them."""
        for first in range(tasks.start, tasks.stop, SATURATING):
            some = range(first, min(first + SATURATING, tasks.stop))
            asked = [{"task": f"t{i:05d}", "input": "味道很好"} for i in some]
            body = json.dumps({"requests": asked, "timeout_ms": 60_000})
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            connection.request("POST", "/v1/predict", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            assert all("label" in item for item in answer.get("predictions", [{}])), answer

    def held(self) -> tuple[int, int]:
        """Composed adapters in memory and their bytes, as the server counts them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return int(float(lines["mp2_adapters_held"])), int(float(lines["mp2_adapters_bytes"]))


@dataclass(slots=True)
class Bench:
    """The load process and everything it has reported."""

    load: subprocess.Popen[str]
    records: list[dict[str, Any]] = field(default_factory=list)

    def run(self, what: str, server: Server, tasks: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
        """One run of the load process; prints and keeps its result."""
        plan = Plan(server.port, str(TEXTS), tasks, seconds, rate, SATURATING, DEADLINE_MS, len(self.records))
        assert self.load.stdin is not None and self.load.stdout is not None
        self.load.stdin.write(json.dumps(asdict(plan)) + "\n")
        self.load.stdin.flush()
        record = {"what": what, "tasks": tasks, **json.loads(self.load.stdout.readline())}
        self.records.append(record)
        print(f"{what:16} {tasks:6,} ", *(f"{_number(record[name]):>13}" for name in COLUMNS), flush=True)
        return record

    def total(self, name: str) -> int:
        """Sum over all runs."""
        return sum(record[name] for record in self.records)


def make_tasks(folder: Path, base: Base, count: int) -> None:
    """Adapters ``t00000`` on: distinct random routers over the bank, beside one task file."""
    bank = base.bank(BANK)
    generator = torch.Generator().manual_seed(0)
    shape = tuple(bank.router.shape[1:])
    facts = (base.name, base.fingerprint, BANK, bank.fingerprint, bank.bank.config.injection)
    first = Adapter(TASK, "router", *facts, {"router": torch.zeros(shape)}, {"seed": 0})
    first.save(folder / "t00000")
    for number in range(1, count):
        target = folder / f"t{number:05d}"
        target.mkdir()
        for name in ("adapter.json", "task.yaml"):
            os.link(folder / "t00000" / name, target / name)
        save_file({"router": torch.randn(shape, generator=generator)}, target / "adapter.safetensors")


@contextlib.contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[Server]:
    """``mp2 serve`` in a process of its own, its log in a file."""
    command = [sys.executable, "-m", "mp2.cli.main", "serve", str(folder), "--port", "0", "--read-only"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *options], stderr=file)
    try:
        while b'"ready"' not in (said := log.read_bytes()):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{said.decode()}")
            time.sleep(0.1)
        line = next(line for line in said.splitlines() if b'"ready"' in line)
        yield Server(int(json.loads(line)["url"].rpartition(":")[2]), process)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def loading() -> Iterator[subprocess.Popen[str]]:
    """The load process."""
    command = [sys.executable, str(Path(__file__).parent / "load.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ladder(bench: Bench, server: Server, tasks: int, effort: Effort) -> dict[str, Any]:
    """Open-loop steps; returns the highest that was held, or the lowest step where none was."""
    saturated = bench.run("saturated", server, tasks, effort.step)["answered"]
    found = [bench.run("ladder", server, tasks, effort.step, share * saturated) for share in effort.steps]
    held = [r for r in found if r["ok"] >= HELD * r["sent"]]
    return max(held, key=lambda r: r["answered"], default=found[0])


def memory_per_task(server: Server) -> dict[int, float]:
    """Ask ever more tasks for the first time; KiB of resident memory per task at each count."""
    found: dict[int, float] = {}
    begin = server.memory
    for before, count in zip((1, *COUNTS[1:]), COUNTS[1:], strict=False):
        clock = time.perf_counter()
        server.ask_once(range(before, count))
        first = (time.perf_counter() - clock) / (count - before) * 1000
        found[count] = (server.memory - begin) / count / 1024
        adapters, size = server.held()
        print(
            f"{count:6,} tasks asked: {found[count]:.1f} KiB resident per task,"
            f" {size / adapters / 1024:.1f} KiB of it composed; first use {first:.2f} ms per task"
        )
    return found


def overload(bench: Bench, server: Server, rate: float, effort: Effort) -> None:
    """Twice what the server can take: who is accepted is in time, who is not hears so at once."""
    bench.run("twice (begin)", server, 1000, effort.overload / 4, 2 * rate)
    early = server.memory
    run = bench.run("twice", server, 1000, effort.overload, 2 * rate)
    grown = (server.memory - early) / 2**20
    print(
        f"overload: slowest accepted {run['max_ms']:.0f} ms of {DEADLINE_MS} ms, p99 of refusals"
        f" {run['refused_p99_ms']} ms, {run['hanging']} hanging, {run['no_retry_after']} without Retry-After,"
        f" memory grew by {grown:.1f} MiB"
    )


def compare(bench: Bench, server: Server, alone: Server, rate: float, effort: Effort) -> tuple[float, float]:
    """Ratios, in turns: batches against one row at a time at one load; 1,000 tasks against one."""
    against, thousand = [], []
    for _ in range(effort.rounds):
        ours = bench.run("batches", server, 1000, effort.step, rate)["answered"]
        against.append(ours / bench.run("one at a time", alone, 1000, effort.step, rate)["answered"])
        one = bench.run("saturated", server, 1, effort.step)["answered"]
        thousand.append(bench.run("saturated", server, 1000, effort.step)["answered"] / one)
    return median(against), median(thousand)


def measure(effort: Effort, options: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Everything; returns the summary."""
    with tempfile.TemporaryDirectory() as scratch, loading() as load, contextlib.ExitStack() as stack:
        folder, bench = Path(scratch) / "tasks", Bench(load)
        make_tasks(folder, load_base(), COUNTS[-1])
        server = stack.enter_context(serving(folder, Path(scratch) / "log", *options))
        server.ask_once(range(1))
        print(f"server with {COUNTS[-1]:,} tasks on disk: {server.memory / 2**20:.0f} MiB resident")
        print(f"{'':16} {'tasks':>6} ", *(f"{name:>13}" for name in COLUMNS))
        bench.run("warm-up", server, 1, 2.0)
        memory = memory_per_task(server)
        held = {count: ladder(bench, server, count, effort) for count in COUNTS}
        alone = stack.enter_context(serving(folder, Path(scratch) / "alone", *options, "--batch", "1"))
        alone.ask_once(range(1000))
        rate = held[1000]["offered"]
        against, thousand = compare(bench, server, alone, rate, effort)
        overload(bench, server, max(r["answered"] for r in bench.records), effort)
    summary = {
        "requests_per_second": held[1000]["answered"],
        "vs_one_at_a_time": round(against, 2),
        "thousand_tasks_vs_one": round(thousand, 3),
        "p99_ms": held[1000]["p99_ms"],
        "server_errors": bench.total("server_errors") + bench.total("hanging") + bench.total("other"),
        "refused": bench.total("refused"),
    }
    if out is not None:
        facts = {
            "commit": git_version(),
            **machine_facts(),
            "summary": summary,
            "kib_per_task": memory,
            "runs": bench.records,
        }
        out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return summary


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under five minutes on two cores")
    parser.add_argument("--json", action="store_true", help="the summary as the last line")
    parser.add_argument("--out", type=Path, help="JSON file for every run")
    parser.add_argument("--threads", help="threads of a forward (an option of mp2 serve)")
    arguments = parser.parse_args()
    options = ("--threads", arguments.threads) if arguments.threads else ()
    summary = measure(QUICK if arguments.quick else FULL, options, arguments.out)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print("\n".join(f"{key}: {value}" for key, value in summary.items()))


if __name__ == "__main__":
    main()
