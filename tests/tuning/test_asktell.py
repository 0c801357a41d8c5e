"""Both optimisers on closed forms: they find the minimum, spend what they may, and continue exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mp2.errors import ConfigError, SearchError
from mp2.tuning.asktell import Array, CmaEs, Optimiser, search
from mp2.tuning.bayes import GpUcb

TARGET = np.array([1.5, -2.0, 0.5])


def sphere(candidates: Array) -> Array:
    return ((candidates - TARGET) ** 2).sum(axis=1)


def valley(candidates: Array) -> Array:
    """Rosenbrock's function; its minimum 0 is at (1, 1, 1)."""
    x, y = candidates[:, :-1], candidates[:, 1:]
    return (100 * (y - x**2) ** 2 + (1 - x) ** 2).sum(axis=1)


def cma(seed: int = 3) -> CmaEs:
    return CmaEs(np.zeros(3), 0.5, population=10, seed=seed)


def gp(seed: int = 3) -> GpUcb:
    return GpUcb(3, box=5.0, random=8, seed=seed)


def region(seed: int = 3) -> GpUcb:
    return GpUcb(3, box=5.0, random=8, seed=seed, trust_region=True)


def test_cma_solves_closed_forms() -> None:
    assert search(sphere, cma(), 1000).best.loss < 1e-8
    found = search(valley, cma(), 6000)
    assert found.best.loss < 1e-6
    np.testing.assert_allclose(found.best.candidate, 1, atol=1e-2)


@pytest.mark.parametrize("make", [gp, region])
def test_the_gaussian_process_needs_few_calls(make: Callable[[], GpUcb]) -> None:
    found = search(sphere, make(), 20)
    assert found.calls == 20
    assert found.best.loss < 0.5
    assert np.abs(found.best.candidate).max() <= 5


@pytest.mark.parametrize(("make", "calls"), [(cma, 10), (cma, 37), (gp, 3), (gp, 12)])
def test_the_budget_is_exact(make: Callable[[], Optimiser], calls: int) -> None:
    seen: list[float] = []

    def counted(candidates: Array) -> Array:
        seen.extend(sphere(candidates))
        return sphere(candidates)

    found = search(counted, make(), calls)
    assert found.calls == len(seen) == calls
    assert found.best.loss == min(seen)
    assert found.ended == "budget"


@pytest.mark.parametrize("make", [cma, gp, region])
def test_a_resumed_search_is_the_uninterrupted_one(make: Callable[[], Optimiser]) -> None:
    told: list[Array] = []
    whole = search(sphere, make(), 14, each=lambda c, _: told.append(c.copy()))
    first = make()
    search(sphere, first, 10)
    np.random.default_rng(0).random(5)  # noise drawn elsewhere
    np.random.random(7)
    second = make()
    second.load_state_dict(first.state_dict())
    assert second.calls == 10
    again: list[Array] = []
    resumed = search(sphere, second, 14, each=lambda c, _: again.append(c.copy()))
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(told)[10:])
    assert resumed.best.loss == whole.best.loss


@pytest.mark.parametrize("seed", range(4))
def test_losses_of_few_values_end_no_search_at_once_and_resume_exactly(seed: int) -> None:
    def steps(candidates: Array) -> Array:
        return np.floor(sphere(candidates) / 20)

    def make() -> CmaEs:
        return CmaEs(np.zeros(3), 0.1, population=10, steps=True, seed=seed)

    whole = search(steps, make(), 1000)
    assert whole.calls > 100 and "tolflatfitness" in whole.ended
    first = make()
    for _ in range(5):
        search(steps, first, first.calls + 20)
        again = make()
        again.load_state_dict(first.state_dict())
        assert again.stop == first.stop
        first = again
    rest = search(steps, first, 1000)
    assert (rest.calls, rest.ended, rest.best.loss) == (whole.calls, whole.ended, whole.best.loss)


def test_a_state_of_another_search_is_refused() -> None:
    first = cma(seed=1)
    search(sphere, first, 30)
    with pytest.raises(SearchError, match="another start, seed"):
        cma(seed=2).load_state_dict(first.state_dict())


def test_bounds_hold_and_the_mean_is_within_them() -> None:
    optimiser = CmaEs(np.zeros(3), 0.5, population=10, bound=1.0, seed=0)
    outside: list[float] = []
    search(sphere, optimiser, 300, each=lambda c, _: outside.append(np.abs(c).max()))
    assert max(outside) <= 1
    np.testing.assert_allclose(optimiser.mean, TARGET.clip(-1, 1), atol=0.05)


def test_cma_stops_by_itself_when_nothing_is_left_to_find() -> None:
    found = search(sphere, cma(), 100_000)
    assert found.calls < 10_000
    assert found.ended not in ("budget", "interrupted")


def test_known_points_come_first_and_stay_in_the_box() -> None:
    known = np.array([[9.0, 0, 0], [1, -2, 0]])
    asked = GpUcb(3, box=5.0, random=4, first=known, seed=0).ask()
    assert asked.shape == (6, 3)
    np.testing.assert_array_equal(asked[:2], known.clip(-5, 5))


@pytest.mark.parametrize("make", [cma, gp])
def test_a_loss_that_is_not_finite_stops_the_search_and_keeps_its_best(make: Callable[[], Optimiser]) -> None:
    optimiser = make()

    def broken(candidates: Array) -> Array:
        losses = sphere(candidates)
        if optimiser.calls >= 10:
            losses[0] = np.nan
        return losses

    with pytest.raises(SearchError, match=r"nan in call 1[1-9].*finite") as caught:
        search(broken, optimiser, 60)
    assert caught.value.best.loss == optimiser.best.loss  # type: ignore[union-attr]


def test_ctrl_c_returns_the_best_so_far() -> None:
    def interrupted(candidates: Array) -> Array:
        if optimiser.calls >= 30:
            raise KeyboardInterrupt
        return sphere(candidates)

    optimiser = cma()
    found = search(interrupted, optimiser, 60)
    assert (found.calls, found.ended) == (30, "interrupted")
    assert found.best.loss < 14


def test_the_documented_example_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "black-box.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        if "service(" in block:
            exec(block, names)
    assert names["found"].best.loss < 1e-6
    assert names["few"].calls == 16
    assert names["again"].calls == names["optimiser"].calls


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="one population of 10 calls, got 9"):
        search(sphere, cma(), 9)
    with pytest.raises(SearchError, match=r"shape \(3,\) for 10 candidates"):
        search(lambda _: np.zeros(3), cma(), 20)
    with pytest.raises(ConfigError, match="one finite vector"):
        CmaEs(np.zeros((2, 2)), 0.1)
    with pytest.raises(ConfigError, match="at least 4"):
        CmaEs(np.zeros(2), 0.1, population=2)
    with pytest.raises(ConfigError, match="within the bound"):
        CmaEs(np.full(2, 3.0), 0.1, bound=1.0)
    with pytest.raises(ConfigError, match=r"expected \(n, 3\)"):
        GpUcb(3, first=np.zeros((2, 4)))
    with pytest.raises(ConfigError, match="2 first points"):
        GpUcb(3, random=0)


def test_a_search_goes_on_after_a_part_of_a_generation_as_if_it_had_not_stopped() -> None:
    one = CmaEs(np.zeros(3), 0.5, population=6, seed=4)
    one.tell(whole := one.ask(), (whole**2).sum(1))
    one.tell(part := one.ask()[:2], (part**2).sum(1))
    other = CmaEs(np.zeros(3), 0.5, population=6, seed=4)
    other.load_state_dict(one.state_dict())
    assert other.calls == one.calls == 8
    np.testing.assert_array_equal(other.ask(), one.ask())
