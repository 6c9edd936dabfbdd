"""Schedules by absolute step."""

from __future__ import annotations

import pytest

from vtp.config import OptimizerParams, Ramp
from vtp.schedules import ramp, rate

OPTIONS = OptimizerParams(rate=1.0, warmup=4, cooldown=5, final_rate=0.1, betas=(0.9, 0.99), weight_decay=0.0, clip=None)


def test_a_ramp_goes_from_start_to_end_and_stays():
    schedule = Ramp(start=0.04, end=0.07, steps=10)
    values = [ramp(schedule, step) for step in range(15)]
    assert values[0] == pytest.approx(0.04)
    assert values[5] == pytest.approx(0.055)
    assert values[10:] == [0.07] * 5
    assert values == sorted(values)


def test_the_rate_warms_up_stays_and_cools_down():
    values = [rate(OPTIONS, step, 20) for step in range(20)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4:15] == pytest.approx([1.0] * 11)
    assert values[-1] == pytest.approx(0.1)
    assert values[15:] == sorted(values[15:], reverse=True)


def test_what_joins_later_warms_up_from_there_and_cools_down_with_the_others():
    values = [rate(OPTIONS, step, 20, start=6) for step in range(20)]
    assert values[:10] == pytest.approx([0.0] * 6 + [0.25, 0.5, 0.75, 1.0])
    assert values[10:] == [rate(OPTIONS, step, 20) for step in range(10, 20)]


def test_before_the_cooldown_the_length_of_the_run_does_not_matter():
    assert [rate(OPTIONS, step, 20) for step in range(15)] == [rate(OPTIONS, step, 200) for step in range(15)]
