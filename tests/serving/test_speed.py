from __future__ import annotations

import pytest

from mp2.serving.speed import Speed


def measured() -> Speed:
    speed = Speed()
    speed.measure((100, 0.010), (1600, 0.085))  # 5 ms and 0.05 ms for each cost
    return speed


def test_what_is_not_known_takes_no_time() -> None:
    assert Speed().seconds(100) == 0 and Speed().seconds(0) == 0


def test_what_was_not_measured_is_learned_from_the_first_batch() -> None:
    speed = Speed()
    speed.learn(64, 0.010)
    assert speed.seconds(128, batches=2) == pytest.approx(0.020)


def test_a_batch_has_a_fixed_part_and_one_that_grows() -> None:
    speed = measured()
    assert speed.seconds(100) == pytest.approx(0.010) and speed.seconds(1600) == pytest.approx(0.085)
    assert speed.seconds(3200, batches=2) == pytest.approx(0.170)
    speed.measure((100, 0.5), (1600, 0.4))  # noise: large work does not look free
    assert speed.seconds(16_000) > speed.seconds(1600) + 0.3


def test_a_slower_machine_is_believed_quickly_at_every_size_and_a_faster_one_slowly() -> None:
    speed = measured()
    for now in range(5):
        speed.learn(100, 0.030, now / 10)
    assert speed.seconds(100) == pytest.approx(0.030, rel=0.1)
    assert speed.seconds(1600) == pytest.approx(0.255, rel=0.1)
    assert speed.stall == pytest.approx(0.02, rel=0.2)  # by so much the first of them was unexpected
    speed.learn(1600, 0.085, 0.5)
    assert speed.seconds(100) > 0.027 and speed.stall < 0.02
    speed.learn(1600, 0.085, 10.0)
    assert speed.seconds(100) == pytest.approx(0.010, rel=0.1) and speed.stall < 0.001
