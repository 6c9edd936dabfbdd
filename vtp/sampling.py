"""From noise to latents: solvers of dx/dt = velocity(x, t), and guidance.

Time runs from 0 (noise) to 1 (data). A velocity is any callable of a state (B, ...) and a time; times are Python floats, so
that whoever looks at them (the interval of guidance) never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vtp.config import SampleParams

Velocity = Callable[[Tensor, float], Tensor]
"""velocity(x (B, ...), t) -> dx/dt (B, ...)."""

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""model(x (B, C, h, w), t (B,), labels (B,)) -> velocity (B, C, h, w)."""

EDGE = 1e-6
"""Times this far beyond an end of guidance's interval are still inside: sums of steps are rounded."""

GUIDED_CHANNELS: dict[str, int | None] = {"all": None, "first3": 3}
"""How many of the first channels `guided` guides, by the name that params.yaml gives it."""


def time_grid(points: int, shift: float) -> list[float]:
    """`points` times from 0 to 1, both exact, hence points - 1 steps; t becomes shift * t / (1 + (shift - 1) * t).

    So 250 points are 249 Euler steps, as in the published samplers, whose settings call them 250 steps. A shift below 1 spends
    more points near the noise, 1 changes nothing (arXiv 2403.03206, section 5.3.2, with time reversed); the published settings
    write 0 for 1.

    Raises:
        ValueError: fewer than two points, or a shift that is not positive.
    """
    if points < 2:
        raise ValueError(f"points={points} is too small; a grid needs both ends, so at least 2.")
    if shift <= 0:
        raise ValueError(f"shift={shift} must be above 0; 1 leaves the grid even.")
    even = [i / (points - 1) for i in range(points)]
    return [shift * t / (shift * t + (1 - t)) for t in even]


def euler(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """First order; one call per step."""
    for t, end in pairwise(grid):
        x = torch.add(x, velocity(x, t), alpha=end - t)
    return x


def heun(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Second order, the explicit trapezoid; two calls per step. torchdiffeq calls it heun2."""
    for t, end in pairwise(grid):
        first = velocity(x, t)
        second = velocity(torch.add(x, first, alpha=end - t), end)
        x = torch.add(x, first + second, alpha=(end - t) / 2)
    return x


def midpoint(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Second order; two calls per step, the second one half a step ahead."""
    for t, end in pairwise(grid):
        half = (end - t) / 2
        x = torch.add(x, velocity(torch.add(x, velocity(x, t), alpha=half), t + half), alpha=end - t)
    return x


def heun3(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Third order (Heun, 1900); three calls per step, at its beginning, one third and two thirds."""
    for t, end in pairwise(grid):
        third = (end - t) / 3
        first = velocity(x, t)
        second = velocity(torch.add(x, first, alpha=third), t + third)
        last = velocity(torch.add(x, second, alpha=2 * third), t + 2 * third)
        x = torch.add(x, first + 3 * last, alpha=(end - t) / 4)
    return x


def _adams(velocity: Velocity, x: Tensor, grid: Sequence[float], order: int) -> Tensor:
    """Adams-Bashforth on an uneven grid: the polynomial through the last `order` slopes, integrated over the step.

    The first steps have fewer slopes behind them and take what they have, so that every step costs one call.
    """
    times: list[float] = []
    slopes: list[Tensor] = []
    for t, end in pairwise(grid):
        times, slopes = [*times, t][-order:], [*slopes, velocity(x, t)][-order:]
        x = x + _weighted(slopes, _integrated_lagrange(times, t, end))
    return x


def _integrated_lagrange(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Of each node, its Lagrange polynomial (1 there, 0 at the others) integrated from `start` to `end`."""
    weights = []
    for node in nodes:
        # Coefficients by rising powers of the distance from `start`: small numbers, whatever the time.
        polynomial = [1.0]
        for other in nodes:
            if other != node:
                raised, lowered = [0.0, *polynomial], [c * (other - start) for c in polynomial] + [0.0]
                polynomial = [(high - low) / (node - other) for high, low in zip(raised, lowered, strict=True)]
        weights.append(sum(c * (end - start) ** (power + 1) / (power + 1) for power, c in enumerate(polynomial)))
    return weights


def adams2(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Second order from the slopes of two steps (Adams-Bashforth); one call per step."""
    return _adams(velocity, x, grid, 2)


def adams3(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """From the slopes of three steps (Adams-Bashforth); one call per step.

    The start with Euler's step leaves the order at two, with a smaller error than two slopes give.
    """
    return _adams(velocity, x, grid, 3)


def dpmpp2m(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Second order in the predicted data, DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); one call per step.

    On the straight path (SANA, arXiv 2410.10629) alpha = t and sigma = 1 - t, the data are predicted as x + (1 - t) * velocity,
    and the linear part of the flow is solved exactly. The prediction counts as constant in the first step, in the one after it
    and in the last: log(alpha / sigma), in which it is extrapolated, is infinite at both ends of the path.
    """
    ratios = [math.log(t / (1 - t)) for t in grid[1:-1]]
    before = x
    for i, (t, end) in enumerate(pairwise(grid)):
        data = torch.add(x, velocity(x, t), alpha=1 - t)
        forward = data
        if 2 <= i < len(grid) - 2:
            width, width_before = ratios[i] - ratios[i - 1], ratios[i - 1] - ratios[i - 2]
            forward = torch.lerp(before, data, 1 + width / (2 * width_before))
        remains = (1 - end) / (1 - t)
        x = remains * x + (end - t * remains) * forward
        before = data
    return x


# Dormand and Prince, 1980: time of each stage, its weights of the stages before. The weights of the last stage are those of the
# solution, so its velocity is the first one of the next step. The error is held against Shampine's fourth-order companion
# (Some practical Runge-Kutta formulas, 1986), as torchdiffeq does, two thirds of the estimate with the original one.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_COMPANION = (1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60)
_ERROR = tuple(high - low for high, low in zip((*_STAGES[-1], 0.0), _COMPANION, strict=True))
_RTOL, _ATOL = 1e-3, 1e-6


def _norm(error: Tensor, *states: Tensor) -> float:
    """Root mean square of an error, in units of what is tolerated where the states are."""
    size = torch.stack(states).abs().amax(0)
    return (error / (_ATOL + _RTOL * size)).square().mean().sqrt().item()


def _weighted(slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((slope * weight for slope, weight in zip(slopes, weights, strict=True) if weight), torch.zeros_like(slopes[0]))


def dopri5(velocity: Velocity, x: Tensor, grid: Sequence[float]) -> Tensor:
    """Fifth order with adaptive steps (Dormand and Prince, 1980) at a relative tolerance of 1e-3; the grid gives only its ends.

    The rows of a batch share their steps, so a sample depends on its companions, within the tolerance. The edge of a guidance
    interval inside a step can cost several times the tolerance: fixed steps suit such a flow better. Each step waits for the
    device once. The first step and the controller follow Hairer, Norsett and Wanner, Solving ODEs I, section II.4.

    Differs from torchdiffeq in that the last step is cut to land on the end, so that no time beyond 1 reaches a model.

    Raises:
        ValueError: the velocity is not finite.
    """
    t, end = grid[0], grid[-1]
    slope = velocity(x, t)
    step = _first_step(velocity, x, t, end, slope)
    while t < end:
        last = t + step >= end
        step = end - t if last else step
        slopes = [slope]
        for node, weights in zip(_NODES, _STAGES, strict=True):
            state = torch.add(x, _weighted(slopes, weights), alpha=step)
            slopes.append(velocity(state, end if last and node == 1 else t + node * step))
        ratio = _norm(_weighted(slopes, _ERROR) * step, x, state)
        if not ratio < float("inf"):
            raise ValueError(f"the velocity is not finite near t={t:.4f}; the model has diverged.")
        if ratio <= 1:
            t, x, slope = end if last else t + step, state, slopes[-1]
        step *= min(10.0, max(0.9 / max(ratio, 1e-10) ** 0.2, 1.0 if ratio < 1 else 0.2))
    return x


def _first_step(velocity: Velocity, x: Tensor, t: float, end: float, slope: Tensor) -> float:
    """A step whose error is probably tolerable, from the sizes of the state and its first two derivatives."""
    state_size, slope_size = _norm(x, x), _norm(slope, x)
    trial = 1e-6 if min(state_size, slope_size) < 1e-5 else min(0.01 * state_size / slope_size, end - t)
    change = velocity(torch.add(x, slope, alpha=trial), t + trial) - slope
    curvature = _norm(change, x) / trial
    steepest = max(slope_size, curvature)
    return min(100 * trial, max(1e-6, 1e-3 * trial) if steepest <= 1e-15 else (0.01 / steepest) ** 0.2)


SOLVERS: dict[str, Callable[[Velocity, Tensor, Sequence[float]], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "heun3": heun3,
    "adams2": adams2,
    "adams3": adams3,
    "dpmpp2m": dpmpp2m,
    "dopri5": dopri5,
}


@torch.no_grad()
def integrate(velocity: Velocity, noise: Tensor, grid: Sequence[float], solver: str) -> Tensor:
    """The state at the last time of `grid` of a flow that starts at `noise` (B, ...) at the first.

    Raises:
        ValueError: an unknown solver, or a flow that is not finite.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is not known; choose one of {', '.join(SOLVERS)}.")
    return SOLVERS[solver](velocity, noise, grid)


def draw(model: Model, noise: Tensor, labels: Tensor, null_label: int, how: SampleParams) -> tuple[Tensor, int]:
    """Normalised latents that `model` makes of `noise` (B, C, h, w) for `labels` (B,), and how often the velocity was asked for.

    One evaluation is one pass of the model, of twice as many rows where guidance acts.
    """
    velocity = guided(
        model,
        labels,
        null_label,
        scale=how.guidance_scale,
        interval=how.guidance_interval,
        channels=GUIDED_CHANNELS[how.guidance_channels],
    )
    evaluations = 0

    def counted(x: Tensor, t: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return velocity(x, t)

    latents = integrate(counted, noise, time_grid(how.points, how.shift), how.solver)
    return latents, evaluations


def guided(
    model: Model,
    labels: Tensor,
    null_label: int,
    *,
    scale: float,
    interval: tuple[float, float],
    channels: int | None = None,
) -> Velocity:
    """The velocity of `model` for `labels` (B,), pushed away from what it is without a class (arXiv 2207.12598).

    Inside the interval of times, both ends included (within `EDGE`), it is unconditional + scale * (conditional - unconditional),
    from one pass over a doubled batch; outside (arXiv 2404.07724), and for a scale of 1, it is the conditional pass alone.
    Published samplers have a start only; their end is 1.

    Args:
        null_label: stands for no class; a DiT's is its number of classes.
        channels: guide only so many of the first channels, and leave the others conditional; None guides all of them. Published
            LightningDiT samplers guide 3, an inheritance of pictures, which is why their scales (6.7 to 10) are so large.
    """
    start, end = interval
    both = torch.cat([labels, torch.full_like(labels, null_label)])

    def velocity(x: Tensor, t: float) -> Tensor:
        if scale == 1 or not start - EDGE <= t <= end + EDGE:
            return model(x, torch.full((len(x),), t, device=x.device), labels).to(x.dtype)
        times = torch.full((2 * len(x),), t, device=x.device)
        conditional, unconditional = model(torch.cat([x, x]), times, both).to(x.dtype).chunk(2)
        pushed = torch.lerp(unconditional[:, :channels], conditional[:, :channels], scale)
        return pushed if channels is None else torch.cat([pushed, conditional[:, channels:]], 1)

    return velocity
