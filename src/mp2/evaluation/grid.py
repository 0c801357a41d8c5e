"""The grid of runs: methods x tasks x seeds to records; resumable, and a failed run does not stop it.

Decides the order (seed by seed, so that a grid that is stopped has the same seeds of every method), what is
checked before anything runs, and what a record of a run says.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from mp2.data.prepare import at_hand, prepare
from mp2.errors import ConfigError, DataError, nearest
from mp2.evaluation.clock import Clock, outcome
from mp2.evaluation.machine import git_version, machine_facts, peak_memory, reset_peak
from mp2.evaluation.protocol import SPLITS, Draw, FewShotTask, test_scores
from mp2.evaluation.records import CALIBRATED, Record, done_keys, open_records, pack_scores
from mp2.evaluation.runners import run_here, run_on_ray
from mp2.evaluation.settings import with_settings
from mp2.model.checkpoint import Base, load_base
from mp2.runtime import Precision, autocast, version_facts
from mp2.tuning.adapter import Adapter
from mp2.tuning.methods import METHODS, Method, get_method
from mp2.tuning.parts import check_parts, lacking, part_fingerprint
from mp2.tuning.refit import check_refit, refit
from mp2.tuning.stages import Probe
from mp2.tuning.tune import not_calibrated, tune

Runner = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Grid:
    """What shall be run.

    Attributes:
        tasks: Names of suites or tasks, or task files.
        methods: Names of methods, or ``all`` for which the base has what they start from.
        seeds: Seeds of the few-shot draws.
        root: Folder of the data sets.
        cache: Folder of prepared data.
        model: Base folder or name; the shipped one when None.
        shots: Rows per label of each draw; None is the protocol's own number.
        test_rows: Test rows of a task; 0 for all.
        variant: Name of an ablation.
        banks: Bank name -> folder of the bank to use in its place.
        settings: Setting of a stage -> value in its place (``mp2.evaluation.settings``).
        precision: ``fp32``, or ``bf16`` products.
        refit: Learn again from train and dev rows, for as long as the dev rows said.
        calibrate: Add to each label's score what it lacks on the train rows, where a task has labels.
        splits: Where the shots come from, and what is scored. ``("train", "dev")`` of upstream tasks chooses
            settings without a look at any test set.
        device: Where the encoder lives.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    root: Path
    cache: Path
    model: str | None = None
    shots: tuple[int | None, ...] = (None,)
    test_rows: int = 0
    variant: str = ""
    banks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = "fp32"
    refit: bool = False
    calibrate: bool = False
    splits: tuple[str, str] = SPLITS
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "seeds", "shots"):
            values = getattr(self, name)
            if not values:
                raise ConfigError(f"{name}: expected at least one")
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: one stands twice: {', '.join(map(str, values))}")
        if wrong := [shots for shots in self.shots if shots is not None and shots < 1]:
            raise ConfigError(f"shots: expected at least 1 row per label, got {wrong[0]}")
        if self.test_rows < 0:
            raise ConfigError(f"test rows: expected 0 (all) or more, got {self.test_rows}")
        if self.splits[0] == self.splits[1] or self.splits[0] == "test":
            names = ",".join(self.splits)
            raise ConfigError(
                f"splits: expected one to draw from, not test, and another to score, got {names}"
            )
        # precision needs no name, though one file or report holds a cell once: a seed changes scores by more
        usual = {"settings": {}, "refit": False, "calibrate": False, "splits": SPLITS}
        other = " and ".join(name for name, value in usual.items() if getattr(self, name) != value)
        if other and not self.variant:
            raise ConfigError(f"other {other} make another experiment: name it with a variant")

    @property
    def rows(self) -> tuple[Method, ...]:
        """The methods, with banks and settings exchanged.

        Raises:
            ConfigError: A name or a setting is unknown; the nearest is named.
        """
        names = tuple(METHODS) if self.methods == ("all",) else self.methods
        rows = with_settings((get_method(name) for name in names), self.settings)
        used = {row.bank for row in rows if row.bank}
        for name in self.banks:
            if name not in used:
                raise ConfigError(
                    f"no method of this grid uses a bank {name!r}; {nearest(name, sorted(used))}"
                )
        for row in rows if self.refit else ():
            check_refit(row)
        return tuple(replace(row, bank=self.banks.get(row.bank or "", row.bank)) for row in rows)


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid."""

    method: Method
    task: str
    seed: int
    shots: int | None = None

    def __str__(self) -> str:
        shots = f" {self.shots} shots" if self.shots else ""
        return f"{self.task} {self.method.name} seed {self.seed}{shots}"


class Bench:
    """A base and the tasks of a grid, made ready once; turns runs into records.

    Args:
        grid: What shall be run.
        base: The base, if it is loaded already.

    Raises:
        Mp2Error: A method, task or bank is not there; told before anything runs.
    """

    def __init__(self, grid: Grid, base: Base | None = None) -> None:
        self.grid, self.methods = grid, grid.rows
        specs, self.absent = at_hand(grid.tasks, grid.root)
        self.base = base or load_base(grid.model, grid.device)
        if grid.methods == ("all",):
            gone = lacking(self.base, self.methods)
            self.methods = tuple(method for method in self.methods if method.name not in gone)
            self.absent += [f"{name}: no {what}" for name, what in gone.items()]
        check_parts(self.base, self.methods)
        replaced = [name for name in grid.banks if name in self.base.banks]
        if replaced and not grid.variant:
            raise ConfigError(
                f"another bank {replaced[0]!r} makes another experiment: name it with a variant"
            )
        protect = () if grid.splits == SPLITS else None  # upstream splits as pre-training has them
        prepared = prepare(
            specs, grid.root, self.base.encoder(), grid.cache, splits=grid.splits, protect=protect
        )
        self.tasks = {
            name: FewShotTask(task, self.base.encoder, grid.test_rows, grid.splits)
            for name, task in prepared.items()
        }
        self._stops = {} if grid.refit else shorter_rows(self.methods)
        self._halfway: dict[str, tuple[Adapter, dict[str, int]]] = {}
        self._place: tuple[str, int, int | None] | None = None

    @cached_property
    def _banks(self) -> dict[str, str]:
        """Fingerprint of what each method starts from."""
        return {method.name: part_fingerprint(self.base, method) for method in self.methods}

    def unfit(self) -> list[str]:
        """Lines about methods that some of the tasks do not allow, and what becomes of their cells."""
        without = [name for name, task in self.tasks.items() if not task.spec.labels]
        picky = [method.name for method in self.methods if method.needs_labels]
        lines = [
            f"{name}: not for {', '.join(without)}, which have no fixed labels" for name in picky if without
        ]
        if self.grid.calibrate:
            as_ever = [*picky, *without]
            lines += [f"{name}: no labels to calibrate; it runs as it is" for name in as_ever]
        return lines

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed; a row that is the first stage of another comes after that one."""
        first_stages = {method.name for method in self._stops.values()}
        methods = sorted(self.methods, key=lambda method: method.name in first_stages)
        for seed in self.grid.seeds:
            for shots in self.grid.shots:
                for task in self.tasks:
                    for method in methods:
                        if self.tasks[task].spec.labels or not method.needs_labels:
                            yield Run(method, task, seed, shots)

    def planned(self, run: Run) -> Record:
        """The record of a run before it ran; its key says whether it was done."""
        base, spec = self.base, self.tasks[run.task].spec
        return Record(
            method=run.method.name,
            method_version=run.method.version,
            task=spec.name,
            task_version=spec.version,
            seed=run.seed,
            shots=run.shots,
            variant=self.grid.variant,
            base=base.name,
            base_fingerprint=base.fingerprint,
            bank=run.method.bank,
            bank_fingerprint=self._banks[run.method.name],
            test_limit=self.grid.test_rows,
            settings=run.method.settings + self._besides(run),
            splits=",".join(self.grid.splits),
            bank_steps=self._bank_steps(run.method),
        )

    def _besides(self, run: Run) -> str:
        """What of a run is no setting of its method's stages, in words."""
        grid = self.grid
        bf16 = grid.precision == "bf16"
        return "; bf16 products" * bf16 + CALIBRATED * self._calibrates(run) + "; refit" * grid.refit

    def _calibrates(self, run: Run) -> bool:
        return self.grid.calibrate and not_calibrated(run.method, self.tasks[run.task].spec) is None

    def _bank_steps(self, method: Method) -> int:
        if method.holds != "prompts" or not method.bank:
            return 0
        return int(self.base.bank(method.bank).facts.get("steps", 0))

    def run(self, run: Run) -> Record:
        """Tune and test; an error becomes part of the record."""
        reset_peak(self.grid.device)
        record = replace(
            self.planned(run),
            versions={**version_facts(), "git": git_version()},
            machine=machine_facts(self.grid.device),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            record = self._measured(run, record)
        except Exception as error:  # whatever it is: the other runs do not depend on it
            record = replace(record, error=f"{type(error).__name__}: {error}"[:2000])
        peak = record.peak_memory | peak_memory(self.grid.device)
        return replace(record, peak_memory={k: max(v, record.peak_memory.get(k, 0)) for k, v in peak.items()})

    def _tuned(self, run: Run, draw: Draw) -> tuple[Adapter, dict[str, int]]:
        """The adapter of a run; with its peak memory if it was tuned as the first stage of another run."""
        halfway = self._halfway.pop(self.planned(run).key, None)
        if halfway is not None:
            return halfway
        if (place := (run.task, run.seed, run.shots)) != self._place:
            self._place, self._halfway = place, {}
        row = self._stops.get(run.method.name)

        def keep(stage: int, adapter: Adapter) -> None:
            if stage == 0 and row is not None:
                key = self.planned(replace(run, method=row)).key
                self._halfway[key] = adapter, peak_memory(self.grid.device)

        given = draw.train, draw.dev, run.method
        spec, between = self.tasks[run.task].spec, keep if row else None
        adapter = tune(
            self.base,
            spec,
            *given,
            seed=run.seed,
            precision=self.grid.precision,
            calibrate=self._calibrates(run),
            between=between,
        )
        if adapter.facts.get("interrupted"):  # what a search had found when Ctrl-C ended it is no result
            raise KeyboardInterrupt
        if self.grid.refit:
            adapter = refit(self.base, adapter, *given, seed=run.seed, precision=self.grid.precision)
        return adapter, {}

    def _measured(self, run: Run, record: Record) -> Record:
        task = self.tasks[run.task]
        draw = task.draw(run.seed, run.shots)
        adapter, peak = self._tuned(run, draw)
        begin = time.monotonic()
        with autocast(self.grid.device, self.grid.precision):
            scores = test_scores(adapter, self.base, task)
        facts = adapter.facts
        return replace(
            record,
            status="done",
            metric=task.spec.metric or "accuracy",
            test=sum(scores) / len(scores),
            dev=facts["dev"],
            train_rows=len(draw.train),
            test_rows=len(scores),
            draw=draw.key,
            test_key=task.test_key,
            scores=pack_scores(scores),
            curve=facts["curve"],
            kept_stage=facts["kept_stage"],
            seconds=facts["seconds"],
            test_seconds=round(time.monotonic() - begin, 2),
            calls=_calls(adapter, run.method),
            tuned_parameters=facts["tuned_parameters"],
            peak_memory=peak,
        )


def shorter_rows(methods: Sequence[Method]) -> dict[str, Method]:
    """Methods whose first stage alone is another row, with that row: tuned once, recorded twice."""
    named = {method.name: method for method in methods}
    return {
        name: row
        for name, method in named.items()
        if (row := named.get(f"{name}-router")) and (row.bank, row.stages) == (method.bank, method.stages[:1])
    }


def _calls(adapter: Adapter, method: Method) -> int:
    """Passes over the train rows: of each stage its calls, as a search counted them, or its steps.

    A probe reads them once, whatever it fits to what it read; learning again from all rows counts too.
    """
    last: dict[int, int] = {}
    for point in adapter.facts["curve"]:
        stage = int(point["stage"])
        once = stage >= 0 and isinstance(method.stages[stage], Probe)
        last[stage] = 1 if once else max(last.get(stage, 0), int(point["step"]))
    searched = {int(stage): int(calls) for stage, calls in adapter.facts.get("calls", {}).items()}
    return sum((last | searched).values()) + int(adapter.facts.get("refit_steps", 0))


def run_grid(
    grid: Grid,
    out: Path,
    *,
    base: Base | None = None,
    runner: Runner = "local",
    workers: int = 2,
    address: str | None = None,
    known: Sequence[Path] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> tuple[int, int]:
    """Run what a records file does not hold yet.

    Args:
        grid: What shall be run.
        out: Records file, appended to.
        base: The base, if it is loaded already.
        runner: ``local`` (this process) or ``ray`` (a Ray cluster).
        workers: Processes of the Ray runner.
        address: Ray cluster to join; a local one is started when None.
        known: Other records files; runs that they hold are not done again.
        say: Receives progress, line by line.

    Returns:
        Number of runs done now, and of runs that failed.

    Raises:
        Mp2Error: Something that all runs need is not there; told before anything runs.
    """
    if address is not None and runner != "ray":
        raise ConfigError(f"address {address}: the runner {runner} joins no cluster; name the runner ray")
    for path in known:
        if not path.is_file():
            raise DataError(f"{path}: no such records file, whose runs could be left out")
    bench = Bench(grid, base)
    runs = list(bench.runs())
    plans = list(map(bench.planned, runs))
    elsewhere = done_keys(known, plans)  # what it refuses leaves no empty file, nor does the bench
    with open_records(out) as file:
        for line in [f"not here: {line}" for line in bench.absent] + bench.unfit():
            say(line)
        done_already = elsewhere | done_keys([out], plans)
        todo = [run for run, plan in zip(runs, plans, strict=True) if plan.key not in done_already]
        total = len(runs)
        say(f"{total} runs, {total - len(todo)} done already; writing to {out}")
        many = runner == "ray" and todo
        clock, failed = Clock([run.method.name for run in todo], workers if many else 1), 0
        done = run_on_ray(bench, todo, workers, address) if many else run_here(bench, todo)
        for run, record, seconds in done:
            file.append(record)
            clock.tick(run.method.name, seconds)
            failed += record.status == "failed"
            say(f"[{total - len(clock.left)}/{total}] {run}: {outcome(record)}  ETA {clock.eta()}")
    return len(todo) - failed, failed
