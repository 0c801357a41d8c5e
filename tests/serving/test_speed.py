from __future__ import annotations

import pytest

from mp2.serving.speed import Speed


def test_what_is_not_known_takes_no_time() -> None:
    assert Speed().seconds(100) == 0 and Speed().seconds(0) == 0


def test_large_batches_cost_less_per_row_and_are_remembered_apart() -> None:
    speed = Speed()
    for _ in range(50):
        speed.learn(64, 0.010)
    assert speed.seconds(64) == pytest.approx(0.010)
    assert speed.seconds(4096) == pytest.approx(0.640)  # nothing larger was seen: no longer per cost
    speed.learn(4096, 0.064)
    assert speed.seconds(4096) == pytest.approx(0.064) and speed.seconds(64) == pytest.approx(0.010)
    assert speed.seconds(2048) == pytest.approx(0.064)  # no longer than the next larger one
    assert speed.seconds(8192, batches=2) == pytest.approx(0.128)
    assert speed.seconds(10 * 64, batches=10) == pytest.approx(0.1)


def test_a_change_of_pace_is_followed() -> None:
    speed = Speed()
    for seconds in [1.0] * 5 + [3.0] * 30:
        speed.learn(100, seconds)
    assert speed.seconds(100) == pytest.approx(3.0, rel=0.01)
