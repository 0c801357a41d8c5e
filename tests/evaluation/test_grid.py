"""The grid on a micro base and invented data: protocol, records, resume, failures, checks beforehand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from mp2.data.prepare import prepare
from mp2.errors import ConfigError, DataError, TaskError
from mp2.evaluation import grid as grid_module
from mp2.evaluation.clock import Clock
from mp2.evaluation.grid import Bench, Grid, run_grid
from mp2.evaluation.protocol import SPLITS, FewShotTask
from mp2.evaluation.records import read_records
from mp2.evaluation.results import Results
from mp2.model.checkpoint import Base, load_bank
from mp2.tasks import catalogue
from mp2.tasks.infer import dump_task
from mp2.tuning.asktell import Array
from mp2.tuning.methods import METHODS, get_method
from mp2.tuning.objective import Objective
from mp2.tuning.stages import Bayes, Cma, Gradient
from tests.evaluation.invented import write_data
from tests.tuning.rows import full_base, short_methods


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def grid(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    quick = Gradient({"router": 0.1}, steps=2, eval_every=1)
    monkeypatch.setitem(
        METHODS, "mp2-deep-gd-router", replace(get_method("mp2-deep-gd-router"), stages=(quick,))
    )
    return Grid(("chnsent", "cote-bd"), ("zero-shot", "mp2-deep-gd-router"), (8, 13), root, cache, shots=(4,))


def test_a_task_file_runs_as_a_task_of_the_catalogue_does(grid: Grid, base: Base, tmp_path: Path) -> None:
    own = tmp_path / "hotels.yaml"
    own.write_text(dump_task(catalogue.get("chnsent").model_copy(update={"name": "hotels"})), "utf-8")
    both = replace(grid, tasks=("chnsent", str(own)), methods=("mp2-deep-gd-router",), seeds=(8,))
    assert run_grid(both, tmp_path / "runs.jsonl", base=base) == (2, 0)
    known, new = read_records([tmp_path / "runs.jsonl"])
    assert (known.task, new.task) == ("chnsent", "hotels") and known.scores == new.scores
    own.write_text(
        own.read_text("utf-8").replace("name: hotels", "name: chnsent").replace("情感", "感情"), "utf-8"
    )
    with pytest.raises(TaskError, match="another task is named 'chnsent'"):
        run_grid(both, tmp_path / "other.jsonl", base=base)


def test_the_protocol_keeps_train_dev_and_test_apart(base: Base, root: Path, cache: Path) -> None:
    prepared = prepare([catalogue.get("chnsent")], root, base.encoder(), cache, splits=SPLITS, protect=())
    task = FewShotTask(prepared["chnsent"], base.encoder, test_rows=10)
    first, again, other = task.draw(8, 4), task.draw(8, 4), task.draw(13, 4)
    assert first == again and first.key != other.key
    assert len(first.train) == len(first.dev) == 8
    assert sorted(example.answer for example in first.train) == [0] * 4 + [1] * 4  # type: ignore[type-var]
    texts = [{e.segments[1].text for e in rows} for rows in (first.train, first.dev, task.test_examples)]
    assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    same = FewShotTask(prepared["chnsent"], base.encoder, test_rows=10)
    assert same.test_key == task.test_key and len(task.test(0)) == 10
    assert task.test(4) is task.test(4)


def test_a_grid_writes_one_whole_record_per_run(base: Base, grid: Grid, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "records.jsonl"
    assert run_grid(grid, out, base=base, say=lines.append) == (8, 0)
    records = read_records([out])
    assert len(records) == 8 and "ETA" in lines[-1]
    for r in records:
        assert r.test == pytest.approx(sum(r.row_scores) / r.test_rows, abs=1e-3)
        assert r.test_rows == 24 and r.train_rows == (8 if r.task == "chnsent" else 4)
        assert r.curve[0]["stage"] == -1 and r.base_fingerprint == base.fingerprint
        assert r.peak_memory["process_mib"] > 0 and r.versions["mp2"] and r.machine["cores"]
    tuned = [r for r in records if r.method == "mp2-deep-gd-router"]
    assert {r.calls for r in tuned} == {2} and {r.tuned_parameters for r in tuned} == {9}
    assert {r.metric for r in records} == {"accuracy", "f1"}
    draws = {(r.task, r.seed, r.draw) for r in records}
    assert len(draws) == 4  # all methods see the same rows


def test_calls_of_a_black_box_search_are_those_of_all_its_stages(
    base: Base, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(get_method("mp2-deep-bb"), stages=(Bayes(calls=5, random=4), Cma(calls=12, popsize=6)))
    monkeypatch.setitem(METHODS, row.name, row)
    searched = replace(grid, tasks=("chnsent",), methods=(row.name,), seeds=(8,))
    assert run_grid(searched, tmp_path / "records.jsonl", base=base, say=lambda _: None) == (1, 0)
    mixed = replace(row, name="mp2-deep-transfer", stages=(row.stages[0], Gradient({"router": 0.1}, steps=7)))
    monkeypatch.setitem(METHODS, mixed.name, mixed)
    again = replace(searched, methods=(mixed.name,))
    assert run_grid(again, tmp_path / "records.jsonl", base=base, say=lambda _: None) == (1, 0)
    assert [r.calls for r in read_records([tmp_path / "records.jsonl"])] == [17, 12]


def test_ctrl_c_in_a_search_stops_the_grid_and_leaves_no_record(
    base: Base, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(get_method("mp2-deep-bb"), stages=(Cma(calls=12, popsize=6),))
    monkeypatch.setitem(METHODS, row.name, row)
    searched = replace(grid, tasks=("chnsent",), methods=(row.name,), seeds=(8,))
    out, real, asked = tmp_path / "records.jsonl", Objective.__call__, list[int]()

    def interrupted(self: Objective, candidates: Array) -> Array:
        if asked:
            raise KeyboardInterrupt
        asked.append(len(candidates))
        return real(self, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_grid(searched, out, base=base, say=lambda _: None)
    assert not read_records([out])
    assert run_grid(searched, out, base=base, say=lambda _: None) == (1, 0)


def test_a_grid_goes_on_where_it_stopped_with_the_same_numbers(
    base: Base, grid: Grid, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    run_grid(grid, whole, base=base, say=lambda _: None)
    run_grid(replace(grid, seeds=(8,)), parts, base=base, say=lambda _: None)
    data = parts.read_bytes()
    parts.write_bytes(data[: len(data) - 40])  # killed while writing the last record
    assert run_grid(grid, parts, base=base, say=lambda _: None) == (5, 0)
    assert run_grid(grid, parts, base=base, say=lambda _: None) == (0, 0)
    assert run_grid(grid, tmp_path / "more.jsonl", base=base, known=[parts], say=lambda _: None) == (0, 0)
    assert {(r.key, r.test, str(r.scores)) for r in read_records([parts])} == {
        (r.key, r.test, str(r.scores)) for r in read_records([whole])
    }


@pytest.mark.parametrize("name", ["mp2-deep-gd", "mp2-deep-bb"])
def test_a_first_stage_that_is_a_row_of_its_own_is_tuned_once_with_the_same_numbers(
    name: str, base: Base, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next(method for method in short_methods() if method.name == name)
    for row in (whole, whole.router_only()):
        monkeypatch.setitem(METHODS, row.name, row)
    both = replace(grid, tasks=("chnsent",), methods=(f"{name}-router", name))
    calls: list[str] = []
    real = grid_module.tune

    def counted(*args: object, **named: object) -> object:
        calls.append(args[4].name)  # type: ignore[attr-defined]
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(grid_module, "tune", counted)
    together, alone = tmp_path / "together.jsonl", tmp_path / "alone.jsonl"
    run_grid(both, together, base=base, say=lambda _: None)
    assert calls == [name, name]
    for method in both.methods:
        run_grid(replace(both, methods=(method,)), alone, base=base, say=lambda _: None)
    numbers = [
        {
            r.key: (r.test, r.scores, r.dev, r.calls, r.tuned_parameters, len(r.curve))
            for r in read_records([p])
        }
        for p in (together, alone)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 4
    assert all(r.peak_memory["process_mib"] > 0 for r in read_records([together]))


def test_a_failed_run_is_recorded_and_the_grid_goes_on(
    base: Base, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grid_module.tune

    def fails_once(*args: object, **named: object) -> object:
        if args[1].name == "chnsent" and named["seed"] == 8:  # type: ignore[attr-defined]
            raise MemoryError("no room")
        return real(*args, **named)  # type: ignore[arg-type]

    out = tmp_path / "records.jsonl"
    monkeypatch.setattr(grid_module, "tune", fails_once)
    assert run_grid(grid, out, base=base, say=lambda _: None) == (6, 2)
    failed = [r for r in read_records([out]) if r.status == "failed"]
    assert {r.error for r in failed} == {"MemoryError: no room"}
    monkeypatch.setattr(grid_module, "tune", real)
    assert run_grid(grid, out, base=base, say=lambda _: None) == (2, 0)


def test_too_small_a_pool_fails_the_run_only(base: Base, grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    small = replace(grid, tasks=("chnsent",), methods=("zero-shot",), seeds=(8,), shots=(2, 100))
    assert run_grid(small, out, base=base, say=lambda _: None) == (1, 1)
    assert "the pool is too small" in read_records([out])[1].error


def test_what_all_runs_need_is_checked_before_anything_runs(
    base: Base, grid: Grid, tmp_path: Path, root: Path
) -> None:
    out = tmp_path / "records.jsonl"
    with pytest.raises(ConfigError, match="no method 'mp2-deep'; did you mean"):
        run_grid(replace(grid, methods=("mp2-deep",)), out, base=base)
    with pytest.raises(TaskError, match="did you mean 'chnsent'"):
        run_grid(replace(grid, tasks=("chnsen",)), out, base=base)
    with pytest.raises(DataError, match="lcqmc: fetch it with 'mp2 data fetch lcqmc', or put"):
        run_grid(replace(grid, tasks=("lcqmc",)), out, base=base)
    with pytest.raises(ConfigError, match="stands twice"):
        replace(grid, seeds=(8, 8))
    with pytest.raises(DataError, match=r"nofile\.jsonl: no such records file, whose runs"):
        run_grid(grid, out, base=base, known=[tmp_path / "nofile.jsonl"])
    with pytest.raises(ConfigError, match="shots: one stands twice: 4, 4"):
        replace(grid, shots=(4, 4))
    with pytest.raises(ConfigError, match="shots: expected at least 1 row per label, got 0"):
        replace(grid, shots=(4, 0))
    with pytest.raises(ConfigError, match="name it with a variant"):
        run_grid(replace(grid, banks={"deep": str(Path(base.path) / "banks" / "deep")}), out, base=base)
    with pytest.raises(ConfigError, match="did you mean 'deep'"):
        run_grid(replace(grid, banks={"dep": "elsewhere"}, variant="v"), out, base=base)
    bare = Base(base.path / "encoder")  # type: ignore[operator]
    with pytest.raises(ConfigError, match="has no banks: no bank 'deep', needed by zero-shot, mp2-deep-gd-r"):
        run_grid(grid, out, base=bare)
    assert not out.exists()


def test_another_bank_is_another_variant(base: Base, grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    bank = base.bank("deep")
    moved = copy.deepcopy(bank.bank)
    for parameter in moved.parameters():
        parameter.data.mul_(2.0)
    other = replace(bank, bank=moved)  # of the same name, as one made by 'mp2 pretrain' is
    other.save(tmp_path / "other")
    exchanged = replace(
        grid, banks={"deep": str(tmp_path / "other")}, variant="other", seeds=(8,), tasks=("chnsent",)
    )
    assert run_grid(exchanged, out, base=base, say=lambda _: None) == (2, 0)
    records = read_records([out])
    assert {r.variant for r in records} == {"other"}
    assert {r.bank_fingerprint for r in records} == {load_bank(tmp_path / "other").fingerprint}


def test_a_refit_is_another_variant_and_only_of_gradients(base: Base, grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other refit make another experiment"):
        replace(grid, refit=True)
    again = replace(grid, refit=True, variant="refit", tasks=("chnsent",), seeds=(8,))
    with pytest.raises(ConfigError, match="method mp2-deep-bb: it cannot learn again"):
        run_grid(replace(again, methods=("mp2-deep-bb",)), tmp_path / "no.jsonl", base=base)
    names = ("mp2-deep-gd", "mp2-deep-gd-router")
    run_grid(replace(again, methods=names), tmp_path / "r.jsonl", base=base, say=lambda _: None)
    found = read_records([tmp_path / "r.jsonl"])
    assert {record.method for record in found} == set(names)
    assert all(record.status == "done" and record.settings.endswith("; refit") for record in found)


def test_bf16_products_stand_in_the_record_and_need_no_name(base: Base, grid: Grid, tmp_path: Path) -> None:
    quick = replace(grid, precision="bf16", tasks=("chnsent",), methods=("zero-shot-base",), seeds=(8,))
    run_grid(quick, tmp_path / "b.jsonl", base=base, say=lambda _: None)
    (record,) = read_records([tmp_path / "b.jsonl"])
    assert record.status == "done" and record.settings.endswith("; bf16 products")
    exact = replace(quick, precision="fp32")  # in that file, where the same cells stand, it would need one
    with pytest.raises(ConfigError, match=r"was run with settings nothing tuned; bf16 .* another variant"):
        run_grid(exact, tmp_path / "b.jsonl", base=base)


def test_calibrated_labels_are_another_variant_and_no_matter_to_other_tasks(
    base: Base, grid: Grid, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="other calibrate make another experiment"):
        replace(grid, calibrate=True)
    names = ("zero-shot-base", "linear-probing")
    again = replace(grid, calibrate=True, variant="calibrated", methods=names, seeds=(8,))
    lines: list[str] = []
    run_grid(again, tmp_path / "c.jsonl", base=base, say=lines.append)
    found = read_records([tmp_path / "c.jsonl"])
    assert {record.method for record in found} == set(names)
    assert all(record.status == "done" for record in found)
    done = {record.method for record in found if record.settings.endswith("; calibrated")}
    assert done == {"zero-shot-base"}  # a classifier has nothing to calibrate, and its record says so
    assert "linear-probing: no labels to calibrate; it runs as it is" in lines
    Results(found)  # one report takes them
    plain = replace(again, calibrate=False)
    with pytest.raises(ConfigError, match="was run with settings nothing tuned; calibrated"):
        run_grid(plain, tmp_path / "c.jsonl", base=base, say=lambda _: None)


def test_tasks_without_labels_stand_beside_calibrated_ones(base: Base, grid: Grid, tmp_path: Path) -> None:
    both = replace(grid, calibrate=True, variant="calibrated", methods=("zero-shot-base",), seeds=(8,))
    run_grid(both, tmp_path / "c.jsonl", base=base, say=lambda _: None)
    found = read_records([tmp_path / "c.jsonl"])
    assert {(r.task, r.settings) for r in found} == {
        ("chnsent", "nothing tuned; calibrated"),
        ("cote-bd", "nothing tuned"),
    }
    Results(found)
    (labelled,) = (record for record in found if record.task == "chnsent")
    with pytest.raises(ConfigError, match="calibration: zero-shot-base on chnsent, calibrated: 1 runs"):
        Results([*found, replace(labelled, seed=13, settings="nothing tuned")])


@pytest.mark.parametrize("splits", [("pool", "pool"), ("test", "test"), ("test", "pool")])
def test_nothing_is_learned_from_the_rows_that_are_scored(grid: Grid, splits: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="splits: expected one to draw from, not test, and another"):
        replace(grid, splits=splits, variant="other")


def test_what_is_refused_leaves_no_empty_file(base: Base, grid: Grid, tmp_path: Path) -> None:
    one = replace(grid, tasks=("chnsent",), methods=("zero-shot-base",), seeds=(8,), variant="v")
    run_grid(one, tmp_path / "known.jsonl", base=base, say=lambda _: None)
    out, known = tmp_path / "new.jsonl", [tmp_path / "known.jsonl"]
    with pytest.raises(ConfigError, match="name it with another variant"):
        run_grid(replace(one, calibrate=True), out, base=base, known=known)
    with pytest.raises(ConfigError, match="the runner local joins no cluster"):
        run_grid(one, out, base=base, address="10.0.0.1:6379")
    assert not out.exists()


def test_all_methods_are_those_that_the_base_can_start(
    base: Base, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ("zero-shot-base", "multi-task-model-tuning")
    monkeypatch.setattr(grid_module, "METHODS", {name: METHODS[name] for name in two})
    lines: list[str] = []
    every = replace(grid, tasks=("chnsent",), methods=("all",), seeds=(8,))
    assert run_grid(every, tmp_path / "r.jsonl", base=base, say=lines.append) == (1, 0)
    assert "not here: multi-task-model-tuning: no bank of encoder 'multitask'" in lines


def test_calls_count_every_pass_over_the_rows(base: Base, grid: Grid, tmp_path: Path) -> None:
    names, settings = ("model-tuning", "linear-probing"), {"steps": "6", "eval_every": "2"}
    one = replace(grid, tasks=("chnsent",), methods=names, seeds=(8,), settings=settings, variant="v")
    run_grid(one, tmp_path / "r.jsonl", base=base, say=lambda _: None)
    calls = {record.method: record.calls for record in read_records([tmp_path / "r.jsonl"])}
    assert calls == {"model-tuning": 6, "linear-probing": 1}
    again = replace(one, methods=("model-tuning",), refit=True, variant="w")
    run_grid(again, tmp_path / "s.jsonl", base=base, say=lambda _: None)
    (record,) = read_records([tmp_path / "s.jsonl"])
    kept = max(record.curve, key=lambda point: (point["dev"], -point["dev_loss"]))
    assert record.calls == 6 + kept["step"]


def test_the_clock_counts_each_method_by_itself() -> None:
    clock = Clock(["model-tuning", "zero-shot"] * 2)
    clock.tick("model-tuning", 100.0)
    clock.tick("zero-shot", 20.0)
    assert clock.eta() == "2 min 00 s"


def test_every_row_of_the_methods_table_runs_through_one_grid(
    tmp_path: Path, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = full_base(tmp_path / "micro"), tmp_path / "records.jsonl"
    for method in short_methods():
        monkeypatch.setitem(METHODS, method.name, method)
    lines: list[str] = []
    every = Grid(("chnsent",), ("all",), (8,), root, cache, shots=(2,), test_rows=6)
    assert run_grid(every, out, base=base, say=lines.append) == (len(METHODS), 0)
    records = read_records([out])
    assert {r.method for r in records} == set(METHODS) and {r.test_rows for r in records} == {6}
    for r in records:
        method = METHODS[r.method]
        assert (r.bank, bool(r.bank_fingerprint)) == (method.bank, method.bank is not None)
        assert (r.calls > 0) == (r.tuned_parameters > 0) == bool(method.stages), r.method
    spans = Bench(replace(every, tasks=("cote-bd",)), base)
    assert spans.unfit() == [
        f"{name}: not for cote-bd, which have no fixed labels" for name in ("linear-probing", "setfit")
    ]
    assert {run.method.name for run in spans.runs()} == set(METHODS) - {"linear-probing", "setfit"}
