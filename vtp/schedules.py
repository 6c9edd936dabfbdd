"""Schedules as functions of the absolute step, so that an interrupted, a continued and an unbroken run agree."""

from __future__ import annotations

import math

from vtp.config import OptimizerParams, Ramp


def ramp(schedule: Ramp, step: int) -> float:
    """`start` at step 0, half a cosine to `end` at `steps`, `end` from there on."""
    if step >= schedule.steps:
        return schedule.end
    done = 0.5 * (1 - math.cos(math.pi * step / schedule.steps))
    return schedule.start + (schedule.end - schedule.start) * done


def rate(optimizer: OptimizerParams, step: int, steps: int, start: int = 0) -> float:
    """Learning rate: linear warm-up, constant, then half a cosine down to `final_rate` x `rate` over the last `cooldown` steps.

    The warm-up begins at step `start`, before which the rate is 0: what joins later has no moments of its gradients until then.
    Before the cool-down nothing depends on `steps`, so runs of different lengths share their beginning (warmup-stable-decay,
    arXiv 2404.06395).
    """
    if step < start:
        return 0.0
    warm = min(1.0, (step - start + 1) / optimizer.warmup) if optimizer.warmup else 1.0
    into = step - (steps - optimizer.cooldown)
    if into < 0 or not optimizer.cooldown:
        return optimizer.rate * warm
    done = 0.5 * (1 - math.cos(math.pi * (into + 1) / optimizer.cooldown))
    return optimizer.rate * warm * (1 - (1 - optimizer.final_rate) * done)
