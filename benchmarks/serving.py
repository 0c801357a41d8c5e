"""The server under load: throughput and latency against offered load, for one task and for thousands.

    python benchmarks/serving.py --quick --json

A real ``mp2 serve`` process, asked over loopback by another process (``load.py``). Tasks are distinct router
rows over the shipped bank; every request is one text. What is measured:

* memory: resident memory before and after tasks were first asked for, per task;
* ladder: throughput of a closed loop, then open-loop load (Poisson arrivals) in shares of it, for 1, 100,
  1,000 and 10,000 tasks. A step is held when at least 99 % of what arrived was answered;
* one at a time: the same closed loop against the same server with batches of one row, in turns;
* thousand tasks against one: the closed loop, in turns;
* overload: twice that throughput for a minute (``--quick``: 15 s). ``--overload 5`` does this alone, for five
  minutes after another, and says after each what memory the server holds.

``--quick`` keeps its time by construction: what is left of it is shared out over what is left to measure, so
on a slow machine every measurement becomes shorter (:class:`Pace`).

The last line is JSON: the highest load held with 1,000 tasks and its p99 latency, the two ratios, and
server errors (5xx, broken and hanging connections) and refusals (429) of the whole run.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
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
START = 12.0  # seconds planned for the start of a server
WARM_UP = 3.0
SHORTEST = 0.5  # seconds of a measurement, however little time is left
COLUMNS = {
    "offered": "offered/s",
    "answered": "answered/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "refused": "refused",
    "server_errors": "errors",
    "server_cpu_ms": "server cpu",
    "load_cpu_ms": "load cpu",
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        total: Seconds for everything.
        ask: Seconds within which tasks are asked for the first time.
        step: Seconds of a step of a ladder.
        steps: Steps as shares of saturation.
        rounds: Rounds of a ratio.
        overload: Seconds of overload.
    """

    total: float
    ask: float
    step: float
    steps: tuple[float, ...]
    rounds: int
    overload: float

    @property
    def planned(self) -> float:
        """Seconds that everything takes on a machine that is quick enough."""
        runs = len(COUNTS) * (1 + len(self.steps)) + 4 * self.rounds
        return 2 * START + WARM_UP + self.ask + runs * self.step + 1.25 * self.overload


QUICK = Effort(200.0, 25.0, 3.5, (0.7, 0.85, 1.0), 2, 15.0)
FULL = Effort(math.inf, 60.0, 5.0, (0.5, 0.8, 0.9, 1.0), 2, 60.0)


class Pace:
    """Shares the time that is left out over what is still planned.

    Args:
        total: Seconds for everything, from now on.
        planned: Seconds that everything would like to have.
    """

    def __init__(self, total: float, planned: float) -> None:
        self.end, self.planned = time.monotonic() + total, planned

    def take(self, seconds: float) -> float:
        """Take a piece of what was planned; returns how long it may take."""
        share = max(0.0, self.end - time.monotonic()) / max(self.planned, seconds)
        self.planned -= seconds
        return max(SHORTEST, seconds * min(1.0, share))


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

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask_once(self, tasks: range, seconds: float = math.inf) -> int:
        """Ask tasks once, a batch in a request, which loads them; returns how many there was time for."""
        end = time.monotonic() + seconds
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        for first in range(tasks.start, tasks.stop, SATURATING):
            if time.monotonic() > end:
                return first - tasks.start
            some = range(first, min(first + SATURATING, tasks.stop))
            asked = [{"task": f"t{i:05d}", "input": "好"} for i in some]
            body = json.dumps({"requests": asked, "timeout_ms": 60_000})
            connection.request("POST", "/v1/predict", body, {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            assert all("label" in item for item in answer.get("predictions", [{}])), answer
        connection.close()
        return len(tasks)


@dataclass(slots=True)
class Bench:
    """The load process and everything it has reported."""

    load: subprocess.Popen[str]
    pace: Pace
    records: list[dict[str, Any]] = field(default_factory=list)

    def run(self, what: str, server: Server, tasks: int, seconds: float, rate: float = 0.0) -> dict[str, Any]:
        """One run of the load process; prints and keeps its result."""
        plan = Plan(
            server.port,
            str(TEXTS),
            tasks,
            self.pace.take(seconds),
            rate,
            SATURATING,
            DEADLINE_MS,
            len(self.records),
        )
        assert self.load.stdin is not None and self.load.stdout is not None
        cpu = server.cpu
        self.load.stdin.write(json.dumps(asdict(plan)) + "\n")
        self.load.stdin.flush()
        record = {"what": what, "tasks": tasks, **json.loads(self.load.stdout.readline())}
        record["server_cpu_ms"] = round(1000 * (server.cpu - cpu) / max(1, record["sent"]), 2)
        self.records.append(record)
        print(f"{what:14} {tasks:6,} ", *(f"{_number(record[name]):>10}" for name in COLUMNS), flush=True)
        return record

    def total(self, name: str) -> int:
        """Sum over all runs."""
        return sum(record[name] for record in self.records)


def make_tasks(folder: Path, base: Base, count: int) -> None:
    """Adapters ``t00000`` on: distinct random routers over the bank, beside one task file."""
    bank = base.bank(BANK)
    shape = tuple(bank.router.shape[1:])
    facts = (base.name, base.fingerprint, BANK, bank.fingerprint, bank.bank.config.injection)
    first = Adapter(TASK, "router", *facts, {"router": torch.zeros(shape)}, {"seed": 0})
    first.save(folder / "t00000")
    whole = (folder / "t00000" / "adapter.safetensors").read_bytes()
    head = whole[: -4 * math.prod(shape)]
    routers = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0)).numpy()
    for number in range(1, count):
        target = folder / f"t{number:05d}"
        target.mkdir()
        for name in ("adapter.json", "task.yaml"):
            os.link(folder / "t00000" / name, target / name)
        (target / "adapter.safetensors").write_bytes(head + routers[number].tobytes())


@contextlib.contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[Server]:
    """``mp2 serve`` in a process of its own, its log in a file."""
    command = [sys.executable, "-m", "mp2.cli.main", "serve", str(folder), "--port", "0", "--read-only"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *options], stderr=file)
    end = time.monotonic() + 10 * START
    try:
        while b'"ready"' not in (said := log.read_bytes()):
            if process.poll() is not None or time.monotonic() > end:
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


def memory_per_task(server: Server, seconds: float) -> dict[int, float]:
    """Ask ever more tasks for the first time; KiB of resident memory per task at each count."""
    found: dict[int, float] = {}
    begin, end = server.memory, time.monotonic() + seconds
    for before, count in zip((1, *COUNTS[1:]), COUNTS[1:], strict=False):
        clock = time.monotonic()
        asked = server.ask_once(range(before, count), end - clock)
        first = (time.monotonic() - clock) / max(1, asked) * 1000
        now = before + asked
        found[now] = round((server.memory - begin) / now / 1024, 1)
        print(f"{now:6,} tasks asked: {found[now]} KiB resident per task; its first answer {first:.1f} ms")
    return found


def ladder(bench: Bench, server: Server, tasks: int, effort: Effort) -> dict[str, Any]:
    """Open-loop steps; returns the highest that was held, or the lowest step where none was."""
    saturated = bench.run("saturated", server, tasks, effort.step)["answered"]
    found = [bench.run("ladder", server, tasks, effort.step, share * saturated) for share in effort.steps]
    held = [r for r in found if r["ok"] >= HELD * r["sent"]]
    return max(held, key=lambda r: r["answered"], default=found[0])


def compare(bench: Bench, server: Server, alone: Server, effort: Effort) -> tuple[float, float]:
    """Ratios of throughput, in turns: batches against one row at a time; 1,000 tasks against one."""
    against, thousand = [], []
    for _ in range(effort.rounds):
        single = bench.run("one at a time", alone, 1000, effort.step)["answered"]
        many = bench.run("saturated", server, 1000, effort.step)["answered"]
        one = bench.run("saturated", server, 1, effort.step)["answered"]
        again = bench.run("saturated", server, 1000, effort.step)["answered"]
        against.append(many / max(single, 0.1))
        thousand.append((many + again) / 2 / max(one, 0.1))
    return median(against), median(thousand)


def overload(bench: Bench, server: Server, rate: float, seconds: float) -> None:
    """Twice what the server can take: who is accepted is in time, who is not hears so at once."""
    bench.run("twice (begin)", server, 1000, seconds / 4, 2 * rate)
    early = server.memory
    run = bench.run("twice", server, 1000, seconds, 2 * rate)
    now = server.memory / 2**20
    print(
        f"overload for {run['seconds']} s: slowest accepted {run['max_ms']} ms of {DEADLINE_MS} ms; p99 of"
        f" refusals {run['refused_p99_ms']} ms; {run['hanging']} hanging, {run['no_retry_after']} without"
        f" Retry-After, statuses {run['statuses']}; memory {now:.0f} MiB ({now - early / 2**20:+.1f})"
    )


def overload_alone(minutes: int, options: Sequence[str]) -> None:
    """Nothing but overload, minute after minute."""
    with tempfile.TemporaryDirectory() as scratch, loading() as load:
        folder, bench = Path(scratch) / "tasks", Bench(load, Pace(math.inf, 1.0))
        make_tasks(folder, load_base(), 1000)
        with serving(folder, Path(scratch) / "log", *options) as server:
            server.ask_once(range(1000))
            bench.run("warm-up", server, 1000, WARM_UP)
            full = bench.run("saturated", server, 1000, 3 * WARM_UP)["answered"]
            for _ in range(minutes):
                overload(bench, server, full, 48.0)  # and a quarter of that before


def measure(effort: Effort, options: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Everything; returns the summary."""
    pace = Pace(effort.total, effort.planned)
    with tempfile.TemporaryDirectory() as scratch, loading() as load, contextlib.ExitStack() as stack:
        folder, bench = Path(scratch) / "tasks", Bench(load, pace)
        make_tasks(folder, load_base(), COUNTS[-1])
        server = stack.enter_context(serving(folder, Path(scratch) / "log", *options))
        alone = stack.enter_context(serving(folder, Path(scratch) / "alone", *options, "--batch", "1"))
        pace.take(2 * START)
        server.ask_once(range(1))
        print(f"server with {COUNTS[-1]:,} tasks on disk: {server.memory / 2**20:.0f} MiB resident")
        print(f"{'':14} {'tasks':>6} ", *(f"{title:>10}" for title in COLUMNS.values()))
        bench.run("warm-up", server, 1, WARM_UP)  # so that memory of the forward is not counted as the tasks'
        memory = memory_per_task(server, pace.take(effort.ask))
        held = {count: ladder(bench, server, count, effort) for count in COUNTS}
        against, thousand = compare(bench, server, alone, effort)
        full = median(r["answered"] for r in bench.records if r["what"] == "saturated" and r["tasks"] == 1000)
        overload(bench, server, full, effort.overload)
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
    parser.add_argument("--quick", action="store_true", help="under four minutes, whatever the machine")
    parser.add_argument("--json", action="store_true", help="the summary as the last line")
    parser.add_argument("--out", type=Path, help="JSON file for every run")
    parser.add_argument("--threads", help="threads of a forward (an option of mp2 serve)")
    parser.add_argument("--overload", type=int, metavar="MINUTES", help="overload alone, for so long")
    arguments = parser.parse_args()
    options = ("--threads", arguments.threads) if arguments.threads else ()
    if arguments.overload:
        overload_alone(arguments.overload, options)
        return
    summary = measure(QUICK if arguments.quick else FULL, options, arguments.out)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print("\n".join(f"{key}: {value}" for key, value in summary.items()))


if __name__ == "__main__":
    main()
