"""Black-box tuning from rows to adapter: budgets, what moves, what is kept, and going on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mp2.errors import CheckpointError, ConfigError, SearchError
from mp2.model.checkpoint import Base, TrainedBank, load_base
from mp2.tuning import layerwise, search_state
from mp2.tuning import objective as objectives
from mp2.tuning.adapter import Adapter, compose
from mp2.tuning.asktell import CmaEs
from mp2.tuning.course import Best, micro_batches
from mp2.tuning.methods import METHODS, Method
from mp2.tuning.random_projection import draw_projection, hidden_scales
from mp2.tuning.search_state import SearchFolder
from mp2.tuning.stages import Bayes, Cma, Gradient
from mp2.tuning.state import TaskState
from mp2.tuning.tune import tune
from tests.micro import LAYERS, MODULES
from tests.tuning.shots import prepared, review_rows, review_task

ROUTER = Bayes(calls=8, random=4)
FUSED = Cma(calls=50, popsize=6, sigma=(0.5, 0.5), eval_every=12)
GRADIENT = Gradient({"router": 0.3})


def method(name: str = "mp2-deep-bb", *stages: Bayes | Cma) -> Method:
    """A published row with a budget for tests."""
    return replace(METHODS[name], stages=stages or (ROUTER, FUSED))


def run(base: Base, row: Method, **more: Any) -> Adapter:
    task = review_task()
    train, dev = review_rows(task)
    return tune(base, task, train, dev, row, seed=5, **more)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["mp2-deep-bb", "mp2-shallow-bb"])
def test_both_stages_spend_exactly_their_calls_and_write_a_line_for_each(
    base: Base, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {"train": 0}
    original = objectives.Objective.__call__

    def counting(self: objectives.Objective, candidates: Any) -> Any:
        counted["train"] += len(candidates)
        return original(self, candidates)

    monkeypatch.setattr(objectives.Objective, "__call__", counting)
    adapter = run(base, method(name), folder=tmp_path)
    assert counted["train"] == 58
    assert adapter.facts["calls"] == {"0": 8, "1": 50}
    written = lines(tmp_path)
    assert [line["call"] for line in written] == [*range(1, 9), *range(1, 51)]
    assert {line["stage"] for line in written} == {0, 1}
    assert all(np.isfinite(line["loss"]) for line in written)
    assert any(line["dev"] is not None for line in written[:8])
    scored = [line for line in written[8:] if line["dev"] is not None]
    assert [line["call"] for line in scored] == [12, 24, 36, 48, 50]  # the last of their generations
    curve = [point for point in adapter.facts["curve"] if point["stage"] == 1]
    assert [line["dev_mean"] for line in scored] == [point["dev"] for point in curve[::2]]
    assert [line["dev"] for line in scored] == [point["dev"] for point in curve[1::2]]
    assert [task for task, _ in sorted(adapter.facts["similar_tasks"])] == ["alpha", "beta"]
    losses = [loss for _, loss in adapter.facts["similar_tasks"]]
    assert losses == sorted(losses)
    assert not adapter.facts["interrupted"]


@pytest.mark.parametrize("name", ["mp2-deep-bb", "mp2-shallow-bb", "bbtv2"])
def test_a_search_with_bf16_products_keeps_its_numbers_in_fp32(base: Base, name: str) -> None:
    row = method(name, FUSED) if name == "bbtv2" else method(name)
    whole, half = run(base, row), run(base, row, precision="bf16")
    assert {value.dtype for value in half.tensors.values()} == {torch.float32}
    assert half.facts["calls"] == whole.facts["calls"] and half.facts["precision"] == "bf16"
    first, other = (adapter.facts["curve"][0]["dev_loss"] for adapter in (whole, half))
    assert first != other and other == pytest.approx(first, abs=0.05)


def test_a_search_finds_lower_losses_and_the_best_moment_answers(base: Base) -> None:
    adapter = run(base, method("mp2-deep-bb", ROUTER, replace(FUSED, calls=300, relative=True)))
    curve = [record for record in adapter.facts["curve"] if record["stage"] == 1]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert adapter.facts["dev"] == max(record["dev"] for record in adapter.facts["curve"])
    composed = compose(adapter, base)
    assert composed.prompts is not None
    assert composed.prompts.shape[0] == LAYERS
    kept = "router" if adapter.facts["kept_stage"] < 1 else "prompts"
    assert set(adapter.tensors) == {kept}
    assert adapter.facts["tuned_parameters"] == LAYERS * MODULES + LAYERS * 6


@pytest.mark.parametrize("name", ["bbt", "bbtv2"])
def test_bbt_moves_a_vector_behind_a_random_projection(base: Base, name: str) -> None:
    adapter = run(base, method(name, replace(FUSED, calls=24, sigma=(1.0, 1.0))))
    again = run(base, method(name, replace(FUSED, calls=24, sigma=(1.0, 1.0))))
    assert adapter.facts["curve"][-1]["loss"] == again.facts["curve"][-1]["loss"]
    assert set(adapter.tensors) == {"prompts"}
    assert adapter.bank is None
    assert adapter.facts["tuned_parameters"] == (LAYERS if name == "bbtv2" else 1) * 128
    paper = TaskState(base, METHODS[f"{name}-paper"], seed=1)
    assert paper.bank is not None
    assert (paper.bank.config.length, paper.bank.config.intrinsic) == (50, 300)


def test_the_projection_has_the_scale_of_what_its_prompts_join(base: Base) -> None:
    task = review_task()
    state, shots = prepared(base, METHODS["bbtv2"], task, review_rows(task)[0])
    assert state.bank is not None
    batches = micro_batches(state, shots.rows)
    draw_projection(state.bank, base.backbone, batches, seed=0)
    scales = [base.backbone.embeddings.word_embeddings.weight.std()]
    scales += hidden_scales(base.backbone, batches, LAYERS)[1:]
    z = torch.randn(400, LAYERS, 128, generator=torch.Generator().manual_seed(1))
    drawn = state.project(z, 0)
    for layer, scale in enumerate(scales):
        assert float(drawn[:, layer].std() / scale) == pytest.approx(1, abs=0.05)
    assert not state.bank.z.any()


@pytest.mark.parametrize("name", ["mp2-deep-bb-released", "mp2-shallow-bb-released"])
def test_the_released_rules_run(base: Base, name: str) -> None:
    first, second = METHODS[name].stages
    assert isinstance(first, Bayes) and isinstance(second, Cma)
    deep = name == "mp2-deep-bb-released"
    row = method(
        name,
        replace(first, calls=21, random=20),
        replace(second, rounds=2 if deep else 0, calls=120, popsize=20, eval_every=30),
    )
    adapter = run(base, row)
    steps = [(record["stage"], record["step"]) for record in adapter.facts["curve"]]
    assert steps[1:] == [(0, 10), (0, 20), (1, 30), (1, 60), (1, 90), (1, 120)]
    assert adapter.facts["calls"]["1"] == (2 * 20 * LAYERS if deep else 120)


def test_of_released_moments_the_first_highest_is_kept_and_the_start_competes_with_none(base: Base) -> None:
    state = TaskState(base, METHODS["mp2-deep-bb-released"], seed=1)
    best = Best(released=True)
    offers = [(-1, 0.9, 0.1), (0, 0.5, 0.4), (0, 0.5, 0.2), (1, 0.6, 0.9), (1, 0.6, 0.1), (1, 0.4, 0.0)]
    assert [best.offer(state, *offer) for offer in offers] == [True, True, False, True, False, False]
    assert (best.key[0], best.stage) == (0.6, 1)


def test_a_moment_whose_loss_is_no_number_is_never_kept(base: Base) -> None:
    state, nan = TaskState(base, METHODS["mp2-deep-bb"], seed=1), float("nan")
    best = Best()
    offers = [
        (-1, 0.5, 0.7),
        (0, 0.5, nan),
        (0, 0.9, nan),
        (0, 0.5, 0.8),
        (0, 0.5, 0.6),
        (0, 0.9, float("inf")),
    ]
    assert [best.offer(state, *offer) for offer in offers] == [True, False, False, False, True, False]
    assert (best.key, best.stage) == ((0.5, -0.6), 0)


@pytest.fixture(scope="module")
def shipped() -> Base:
    return load_base()


@pytest.mark.parametrize(
    ("name", "sigma", "bound"),
    [
        ("mp2-deep-bb-paper", (0.05, 0.01), 0),
        ("mp2-deep-bb-released", (0.5, 0.1), 5),
        ("mp2-shallow-bb-paper", (0.1, 0.1), 0),
        ("mp2-shallow-bb-released", (0.1, 0.1), 0),
    ],
)
def test_steps_and_bounds_have_the_scale_of_the_shipped_bank(
    shipped: Base, name: str, sigma: tuple[float, float], bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float, float]] = []

    class Noted(CmaEs):
        def __init__(self, start: Any, sigma: float, *, bound: float, **more: Any) -> None:
            super().__init__(start, sigma, bound=bound, **more)
            asked.append((sigma / start.std(), bound / start.std(), self.ask().std(axis=0).mean() / sigma))

    monkeypatch.setattr(layerwise, "CmaEs", Noted)
    first, second = METHODS[name].stages
    assert isinstance(first, Bayes) and isinstance(second, Cma)
    few = (replace(first, calls=5, random=4), replace(second, rounds=0, calls=60))
    assert run(shipped, method(name, *few)).facts["calls"] == {"0": 5, "1": 60}
    for layer, found in enumerate(asked):
        assert found == pytest.approx((sigma[min(layer, 1)], bound, 1), rel=0.2)


def test_a_start_beyond_the_bound_begins_at_it(base: Base) -> None:
    row = method("mp2-deep-bb", replace(FUSED, calls=12, relative=True, bound=0.5))
    assert run(base, row).facts["calls"] == {"0": 12}


def test_the_row_of_known_tasks_tries_as_many_as_the_bank_knows(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = METHODS["mp2-deep-bb-transfer"]
    found = run(base, row)
    assert found.facts["calls"] == {"0": 3} and len(found.facts["similar_tasks"]) == 2
    source = base.bank("deep")
    _bank(monkeypatch, base, replace(source, router=source.router[:0], tasks=()))
    with pytest.raises(ConfigError, match=r"mp2-deep-bb-transfer: .* its bank has no routers of known tasks"):
        run(base, row)


def test_only_router_and_z_move_and_no_gradient_is_built(base: Base) -> None:
    before = {
        **base.backbone.state_dict(),
        **{f"bank.{k}": v for k, v in base.bank("deep").bank.state_dict().items()},
        **{f"head.{k}": v for k, v in base.bank("deep").head.state_dict().items()},
        "router": base.bank("deep").router,
    }
    copies = {key: value.clone() for key, value in before.items()}
    with torch.autograd.graph.saved_tensors_hooks(_refuse, _refuse):
        run(base, method("mp2-deep-bb", replace(ROUTER, calls=5, random=3), FUSED))
    assert all(torch.equal(value, copies[key]) for key, value in before.items())
    assert all(p.grad is None for p in base.backbone.parameters())


def _refuse(_: Any) -> Any:
    raise AssertionError("a gradient is being built")


LONG = replace(ROUTER, calls=20)
_CHILD = """
import sys
from pathlib import Path
from mp2.model.checkpoint import Base
from mp2.tuning import search_state
from tests.tuning.test_blackbox import FUSED, LONG, method, run
search_state.EVERY = 0.0
run(Base(Path(sys.argv[1])), method("mp2-deep-bb", LONG, FUSED), folder=Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, list[dict[str, Any]]]:
    """A search that nothing stopped, and its log."""
    folder = tmp_path_factory.mktemp("whole")
    return run(base, method("mp2-deep-bb", LONG, FUSED), folder=folder), lines(folder)


@pytest.mark.parametrize("calls", [9, 20 + 24], ids=["stage I", "stage II"])
def test_a_killed_search_goes_on_as_if_it_had_not_been(
    base: Base, tmp_path: Path, whole: tuple[Adapter, list[dict[str, Any]]], calls: int
) -> None:
    _kill_after(base, tmp_path, calls)
    assert len(lines(tmp_path)) < (20 if calls < 20 else 70)
    resumed = run(base, method("mp2-deep-bb", LONG, FUSED), folder=tmp_path)
    _same_search(resumed, whole[0])
    assert _timeless(lines(tmp_path)) == _timeless(whole[1])


def test_an_interrupted_search_of_the_router_goes_on(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_state, "EVERY", 0.0)
    whole = run(base, method())
    with monkeypatch.context() as patch:
        _fail_after(patch, 7, KeyboardInterrupt())
        assert run(base, method(), folder=tmp_path).facts["calls"] == {"0": 7}
    _same_search(run(base, method(), folder=tmp_path), whole)


def _same_search(one: Adapter, other: Adapter) -> None:
    assert _timeless(one.facts["curve"]) == _timeless(other.facts["curve"])
    assert one.facts["calls"] == other.facts["calls"]
    assert one.tensors.keys() == other.tensors.keys()
    for key, value in other.tensors.items():
        torch.testing.assert_close(one.tensors[key], value, rtol=0, atol=0)


def _timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def _kill_after(base: Base, folder: Path, calls: int) -> None:
    """Run the search in another process and kill it once its saved state covers some calls."""
    arguments = [sys.executable, "-c", _CHILD, str(base.path), str(folder)]
    child = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and child.poll() is None:
            if list(folder.glob("state-*")) and len(lines(folder)) >= calls:
                break
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL


def test_a_finished_search_is_read_and_another_one_is_refused(base: Base, tmp_path: Path) -> None:
    row = method("mp2-deep-bb", replace(FUSED, calls=12))
    first = run(base, row, folder=tmp_path)
    size = len(lines(tmp_path))
    second = run(base, row, folder=tmp_path)
    assert len(lines(tmp_path)) == size
    assert second.facts["dev"] == first.facts["dev"]
    with pytest.raises(ConfigError, match=r"holds a search with stages .* choose another folder"):
        run(base, method("mp2-deep-bb", replace(FUSED, calls=18)), folder=tmp_path)
    newest = sorted(tmp_path.glob("state-*"))[-1]
    saved = json.loads((newest / "search.json").read_text())
    lost = {key: value for key, value in saved["state"].items() if key != "curve"}
    for damaged in ([], None, saved | {"state": None}, saved | {"identity": None}, saved | {"state": lost}):
        (newest / "search.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match="damaged"):
            run(base, row, folder=tmp_path)
    (newest / "search.json").write_text(json.dumps(saved))
    (newest / "search.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged"):
        run(base, row, folder=tmp_path)


def test_a_log_is_never_filled_up_nor_one_without_a_state_emptied(base: Base, tmp_path: Path) -> None:
    row = method("mp2-deep-bb", replace(FUSED, calls=12))
    run(base, row, folder=tmp_path)
    log = tmp_path / "calls.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    half = tmp_path / ".state-00000009.x"
    half.mkdir()
    run(base, row, folder=tmp_path)
    assert len(lines(tmp_path)) == 11 and not half.exists()
    log.unlink()
    run(base, row, folder=tmp_path)
    assert log.read_bytes() == b""
    other = tmp_path / "other"
    other.mkdir()
    (other / "calls.jsonl").write_text("mine\n")
    with pytest.raises(
        ConfigError, match=r"calls\.jsonl: holds lines, but there is no state of their search"
    ):
        run(base, row, folder=other)
    assert (other / "calls.jsonl").read_text() == "mine\n"


def test_lines_of_a_save_that_failed_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = SearchFolder(tmp_path, {})
    assert folder.load() is None
    folder.line({"call": 1})
    with monkeypatch.context() as patch:
        patch.setattr(search_state, "save_file", full)
        folder.save({})
        with pytest.raises(CheckpointError, match="No space left on device"):
            folder.flush()
    folder.line({"call": 2})
    folder.flush()  # the step of the second call is not whole yet
    assert lines(tmp_path) == [{"call": 1}]
    folder.save({})
    folder.flush()
    assert lines(tmp_path) == [{"call": 1}, {"call": 2}]


def test_two_searches_in_one_folder_are_refused_and_copies_of_states_are_none(
    base: Base, tmp_path: Path
) -> None:
    row = method("mp2-deep-bb", ROUTER)
    first = run(base, row, folder=tmp_path)
    with (
        SearchFolder(tmp_path, {}).held(),
        pytest.raises(ConfigError, match="another search is running in it"),
    ):
        run(base, row, folder=tmp_path)
    state = max(tmp_path.glob("state-*"))
    shutil.copytree(state, tmp_path / f"{state.name}-backup")
    again = run(base, row, folder=tmp_path)
    assert again.facts["curve"] == first.facts["curve"]


CONVERGED = replace(FUSED, sigma=(1e-13, 1e-13))


@pytest.mark.parametrize(
    ("stages", "calls", "error", "ended"),
    [
        ((replace(ROUTER, random=2),), 5, KeyboardInterrupt(), "interrupted"),
        ((FUSED,), 20, KeyboardInterrupt(), "interrupted"),
        ((ROUTER, FUSED), 30, KeyboardInterrupt(), "interrupted"),
        ((ROUTER, FUSED), 30, None, "error"),
        ((ROUTER, CONVERGED), 999, None, "tol"),
    ],
)
def test_every_call_that_counts_has_its_line_however_the_search_ends(
    base: Base,
    tmp_path: Path,
    stages: tuple[Bayes | Cma, ...],
    calls: int,
    error: BaseException | None,
    ended: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        _fail_after(patch, calls, error)
        try:
            facts = run(base, method("mp2-deep-bb", *stages), folder=tmp_path).facts
        except SearchError as caught:
            facts = caught.best.facts
    assert ended in facts["ended"][str(len(stages) - 1)]
    assert 0 < len(lines(tmp_path)) == sum(facts["calls"].values()) < 58


def test_a_step_that_ctrl_c_cuts_while_its_dev_scores_are_taken_does_not_count(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    row = method("mp2-deep-bb", ROUTER, FUSED)
    with monkeypatch.context() as patch:
        patch.setattr(layerwise.LayerWalk, "_measure", interrupted)
        found = run(base, row, folder=tmp_path)
    assert found.facts["calls"] == {"0": 8, "1": 6} and len(lines(tmp_path)) == 14
    _same_search(run(base, row, folder=tmp_path), run(base, row))


@pytest.mark.parametrize(
    ("stage", "calls"), [(replace(ROUTER, random=2), 5), (FUSED, 5), (ROUTER, 0), (FUSED, 0)]
)
def test_ctrl_c_returns_the_best_so_far(
    base: Base, stage: Bayes | Cma, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything was told, that is the start."""
    _fail_after(monkeypatch, calls, KeyboardInterrupt())
    adapter = run(base, method("mp2-deep-bb", stage, FUSED))
    assert adapter.facts["interrupted"]
    assert list(adapter.facts["calls"]) == ["0"]
    assert compose(adapter, base).prompts is not None


def test_a_loss_that_is_not_finite_is_an_error_that_carries_the_best_adapter(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_after(monkeypatch, 8, None)
    with pytest.raises(SearchError, match=r"nan in call \d+: expected a finite loss") as caught:
        run(base, method())
    assert isinstance(caught.value.best, Adapter)
    assert compose(caught.value.best, base).prompts is not None


def _fail_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException | None) -> None:
    """An objective that raises, or returns NaN, once some calls were made."""
    original, asked = objectives.Objective.__call__, Counter[objectives.Objective]()

    def failing(self: objectives.Objective, candidates: Any) -> Any:
        losses = original(self, candidates)
        asked[self] += len(candidates)
        if asked[self] > calls:
            if error is not None:
                raise error
            losses[:] = np.nan
        return losses

    monkeypatch.setattr(objectives.Objective, "__call__", failing)


def test_settings_that_cannot_work_are_refused_before_anything_is_spent(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_after(monkeypatch, 0, AssertionError("a call was spent"))
    with pytest.raises(ConfigError, match="one population of 6 calls, got 5"):
        run(base, method("mp2-deep-bb", ROUTER, replace(FUSED, calls=5)))
    with pytest.raises(ConfigError, match="at least 2 first points to try: random is 1, and transfer is off"):
        run(base, method("mp2-deep-bb", FUSED, replace(ROUTER, random=1, transfer=False)))
    source = base.bank("deep")
    _bank(monkeypatch, base, replace(source, bank=source.bank.materialised()))
    with pytest.raises(ConfigError, match=r"bank 'deep' has no intrinsic vectors z and projection A"):
        run(base, method())
    _bank(monkeypatch, base, replace(source, router=torch.zeros(2, LAYERS, MODULES + 1)))
    with pytest.raises(ConfigError, match=r"expected routers \(tasks, 3, 3\), got \(2, 3, 4\).*another bank"):
        run(base, method())


def _bank(monkeypatch: pytest.MonkeyPatch, base: Base, bank: TrainedBank) -> None:
    monkeypatch.setitem(base._banks, "deep", bank)


def test_the_published_rows_are_those_of_the_paper() -> None:
    for name, calls in (("mp2-deep-bb-paper", 100), ("mp2-shallow-bb-paper", 200)):
        router, fused = METHODS[name].stages
        assert isinstance(router, Bayes) and isinstance(fused, Cma)
        assert (router.calls, router.random, router.kappa, router.box) == (calls, 20, 2.0, 5.0)
        assert router.calls + fused.calls == 8000
        assert fused.popsize == 20


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        (ROUTER, {"loss": "hing"}, "setting loss: no 'hing'; did you mean 'hinge'"),
        (ROUTER, {"select": "relesed"}, "setting select: no 'relesed'; did you mean 'released'"),
        (ROUTER, {"scales": "ech"}, "setting scales: no 'ech'; did you mean 'each'"),
        (ROUTER, {"calls": -1}, "setting calls: expected at least 0, got -1"),
        (ROUTER, {"kappa": float("nan")}, "setting kappa: expected at least 0, got nan"),
        (ROUTER, {"box": 0.0}, "setting box: expected more than 0, got 0.0"),
        (FUSED, {"keep": "best"}, "setting keep: no 'best'; did you mean 'best-ever'"),
        (FUSED, {"eval_every": 0}, "setting eval_every: expected at least 1, got 0"),
        (FUSED, {"popsize": 3}, "setting popsize: expected at least 4, got 3"),
        (FUSED, {"sigma": (0.1, 0.0)}, "setting sigma: expected more than 0, got 0.0"),
        (FUSED, {"sigma": (0.1,)}, r"setting sigma: expected two steps, .* got \(0.1,\)"),
        (FUSED, {"bound": float("inf")}, "setting bound: expected at least 0, got inf"),
        (GRADIENT, {"steps": 0}, "setting steps: expected at least 1, got 0"),
        (GRADIENT, {"lr": {"router": -0.1}}, "setting lr.router: expected more than 0, got -0.1"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(
    stage: Bayes | Cma | Gradient, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(stage, **settings)
