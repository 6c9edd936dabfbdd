from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.published_dit import reference
from vtp.config import SampleParams
from vtp.models.dit import DiT
from vtp.sampling import Velocity, draw, guided, integrate, time_grid
from vtp.seeding import generator

FOLDER = Path(__file__).parent / "oracles" / "transport"


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> DiT:
    return reference("lightningdit_a")[0]


def landing(flow: Velocity, noise: Tensor) -> tuple[Tensor, int]:
    """torchdiffeq's state at 1 and its calls, told not to step beyond the end."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    calls = [0]

    def field(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return flow(x, t.item())

    with torch.no_grad():
        ends = torch.tensor([0.0, 1.0])
        path = torchdiffeq.odeint(field, noise, ends, method="dopri5", rtol=1e-3, atol=1e-6, options={"step_t": ends[1:]})
    return path[-1], calls[0]


@pytest.mark.parametrize("start", [0.0, 0.35])
def test_adaptive_steps_are_those_of_torchdiffeq(io: dict[str, Tensor], model: DiT, start: float) -> None:
    flow = guided(model, io["sample.y"], 10, scale=2.5, interval=(start, 1.0), channels=3)
    times: list[float] = []

    def recorded(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return flow(x, t)

    ours = integrate(recorded, io["sample.z"], [0.0, 1.0], "dopri5")
    theirs, calls = landing(flow, io["sample.z"])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert len(times) == calls


@pytest.mark.parametrize(
    ("solver", "name"), [("euler", "euler"), ("heun", "heun2"), ("midpoint", "midpoint"), ("heun3", "heun3")]
)
def test_fixed_steps_are_those_of_torchdiffeq(solver: str, name: str) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    noise, grid = torch.randn(3, 4, generator=generator(0, "noise"), dtype=torch.float64), time_grid(7, 0.4)

    def flow(x: Tensor, t: float) -> Tensor:
        return torch.stack([x[:, 1], -6 * x[:, 0], x[:, 3] * math.cos(9 * t), -x[:, 3] * x[:, 0]], 1)

    with torch.no_grad():
        times = torch.tensor(grid, dtype=torch.float64)
        theirs = torchdiffeq.odeint(lambda t, x: flow(x, t.item()), noise, times, method=name)[-1]
    torch.testing.assert_close(integrate(flow, noise, grid, solver), theirs, atol=1e-9, rtol=1e-9)


def test_adaptive_steps_are_those_of_torchdiffeq_where_steps_are_rejected() -> None:
    noise = torch.randn(3, 4, generator=generator(0, "noise"), dtype=torch.float64)
    times: list[float] = []

    def flow(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return torch.stack([x[:, 1], -60 * x[:, 0], x[:, 3] * 40 * math.exp(-((t - 0.6) ** 2) / 0.001), -x[:, 3]], 1)

    ours = integrate(flow, noise, [0.0, 1.0], "dopri5")
    ours_calls, rejected = len(times), any(later < earlier - 0.02 for earlier, later in pairwise(times[2:]))
    theirs, calls = landing(flow, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert rejected
    assert ours_calls in (calls, calls - 1)


ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "heun3": 3, "adams2": 2, "adams3": 2, "dpmpp2m": 2}
FIXED = list(ORDERS)
ONE_CALL = [name for name in FIXED if name not in ("heun", "midpoint", "heun3")]


def even(steps: int) -> list[float]:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()


def gaussian_flow(mean: float, deviation: float) -> Velocity:
    """The exact velocity of straight paths from standard normal noise to normal data: it ends at mean + deviation * noise."""

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = (t * deviation) ** 2 + (1 - t) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


@pytest.mark.parametrize("solver", FIXED)
def test_error_falls_with_the_order(solver: str) -> None:
    noise = torch.ones(1, 1, dtype=torch.float64)
    truth = math.exp(math.sin(1.0))
    errors = [abs(integrate(lambda x, t: x * math.cos(t), noise, even(n), solver).item() - truth) for n in (256, 512)]
    # The data are extrapolated in a logarithm that is singular at both ends: the order comes with a logarithm of the steps.
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDERS[solver], rel=0.2 if solver == "dpmpp2m" else 0.05)


@pytest.mark.parametrize("solver", FIXED)
def test_the_flow_between_two_gaussians_ends_where_it_must(solver: str) -> None:
    noise = torch.randn(64, generator=generator(0, "noise"), dtype=torch.float64)
    errors = [(integrate(gaussian_flow(1.5, 0.3), noise, even(n), solver) - 1.5 - 0.3 * noise).abs().max() for n in (16, 128)]
    assert errors[1] < errors[0] / (7 if ORDERS[solver] == 1 else 12) or errors[1] < 2e-3
    assert errors[1] < (0.02 if ORDERS[solver] == 1 else 2e-3)


@pytest.mark.parametrize("solver", FIXED)
def test_straight_lines_need_one_step(solver: str) -> None:
    data, noise = (torch.randn(2, 3, generator=generator(0, name), dtype=torch.float64) for name in ("data", "noise"))
    for grid in ([0.0, 1.0], [0.0, 0.1, 0.5, 0.8, 1.0]):
        torch.testing.assert_close(integrate(lambda x, t: data - noise, noise, grid, solver), data)


@pytest.mark.parametrize("order", [2, 3])
def test_adams_steps_are_exact_for_slopes_that_are_polynomials_in_time(order: int) -> None:
    grid, start = [0.0, 0.1, 0.35, 0.5, 0.9, 1.0], order - 1
    slope = lambda x, t: torch.full_like(x, order * t ** (order - 1))  # noqa: E731
    path = [integrate(slope, torch.zeros(1, dtype=torch.float64), grid[: k + 1], f"adams{order}").item() for k in range(1, 6)]
    # The first steps have too few slopes behind them; from then on every step adds what the integral adds.
    for k in range(start, 5):
        assert path[k] - path[k - 1] == pytest.approx(grid[k + 1] ** order - grid[k] ** order)


def test_data_prediction_takes_the_steps_of_its_paper() -> None:
    """DPM-Solver++(2M) written as in the paper, in log-ratios, on a path that touches neither end."""
    grid, flow = [0.1, 0.2, 0.35, 0.5, 0.8, 0.9], gaussian_flow(1.0, 0.5)
    x = torch.randn(4, generator=generator(0, "noise"), dtype=torch.float64)
    ours = integrate(flow, x, grid, "dpmpp2m")
    ratio = lambda t: math.log(t / (1 - t))  # noqa: E731
    data: list[Tensor] = []
    for i in range(len(grid) - 1):
        t, end = grid[i], grid[i + 1]
        data.append(x + (1 - t) * flow(x, t))
        h = ratio(end) - ratio(t)
        d = data[-1]
        if 2 <= i < len(grid) - 2:
            r = (ratio(t) - ratio(grid[i - 1])) / h
            d = (1 + 1 / (2 * r)) * data[-1] - 1 / (2 * r) * data[-2]
        x = (1 - end) / (1 - t) * x - end * (math.exp(-h) - 1) * d
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("solver", ONE_CALL)
def test_evaluations_are_counted(solver: str) -> None:
    how = SampleParams(8, 8, solver, 6, 1.0, 2.0, (0.3, 1.0), "all", False)
    latents, evaluations = draw(Recorder(), torch.zeros(2, 4, 2, 2), torch.tensor([1, 2]), 10, how)
    assert evaluations == 5
    assert latents.shape == (2, 4, 2, 2)


def test_adaptive_steps_are_exact_on_a_constant_flow() -> None:
    noise = torch.randn(2, 3, generator=generator(0, "noise"))
    reached = integrate(lambda x, t: torch.full_like(x, 2.0), noise, [0.0, 1.0], "dopri5")
    torch.testing.assert_close(reached, noise + 2)


def test_adaptive_steps_start_from_nothing() -> None:
    reached = integrate(lambda x, t: torch.full_like(x, 0.0), torch.zeros(2, 3), [0.0, 1.0], "dopri5")
    assert reached.count_nonzero() == 0


def test_a_diverged_flow_is_reported() -> None:
    with pytest.raises(ValueError, match="not finite"):
        integrate(lambda x, t: x * float("nan"), torch.ones(1), [0.0, 1.0], "dopri5")


@pytest.mark.parametrize("shift", [0.05, 0.075, 0.15, 0.3, 0.4, 1.0, 6.93])
def test_grids_begin_and_end_exactly(shift: float) -> None:
    """In float32 the grid of the published shift of 0.075 ended at 1.0000002."""
    for points in (2, 3, 50, 250):
        grid = time_grid(points, shift)
        assert (grid[0], grid[-1]) == (0.0, 1.0)
        assert all(start < end for start, end in pairwise(grid))


def test_no_time_beyond_the_end_reaches_a_model() -> None:
    """A flow that hardly moves asks for a first step of a hundred times the path."""
    times: list[float] = []

    def flow(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return torch.full_like(x, 1e-4)

    torch.testing.assert_close(integrate(flow, torch.ones(4), [0.0, 1.0], "dopri5"), torch.full((4,), 1.0001))
    assert max(times) == 1


def test_unknown_names_and_sizes_are_reported() -> None:
    with pytest.raises(ValueError, match="rk4"):
        integrate(lambda x, t: x, torch.ones(1), [0.0, 1.0], "rk4")
    with pytest.raises(ValueError, match="points"):
        time_grid(1, 1.0)
    with pytest.raises(ValueError, match="shift"):
        time_grid(4, 0.0)


class Recorder:
    """A model whose velocity is its label everywhere; it keeps the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert len(x) == len(t) == len(labels)
        self.sizes.append(len(x))
        return labels.float()[:, None, None, None].expand_as(x)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)])
def test_guidance_acts_inside_its_interval_only(t: float, inside: bool) -> None:
    model, labels, x = Recorder(), torch.tensor([1, 2, 3]), torch.zeros(3, 4, 2, 2)
    out = guided(model, labels, 10, scale=3.0, interval=(0.2, 0.7))(x, t)
    expected = 10 + 3.0 * (labels - 10) if inside else labels
    assert torch.equal(out, expected.float()[:, None, None, None].expand_as(x))
    assert model.sizes == [6 if inside else 3]


@pytest.mark.parametrize(("solver", "guided_calls"), [("euler", 3), ("heun", 6), ("midpoint", 5)])
def test_the_ends_of_the_interval_are_inside_whatever_the_rounding(solver: str, guided_calls: int) -> None:
    """Steps of a fifth: 0.6 is 3 / 5, and 0.4 + 0.1 and the like are sums of rounded numbers."""
    model, x = Recorder(), torch.zeros(1, 1, 1, 1)
    integrate(guided(model, torch.tensor([1]), 10, scale=3.0, interval=(0.2, 0.6)), x, time_grid(6, 1.0), solver)
    assert model.sizes.count(2) == guided_calls


def test_guidance_of_some_channels_leaves_the_others() -> None:
    model, labels, x = Recorder(), torch.tensor([1, 2, 3]), torch.zeros(3, 4, 2, 2)
    out = guided(model, labels, 10, scale=3.0, interval=(0.0, 1.0), channels=3)(x, 0.5)
    whole = guided(model, labels, 10, scale=3.0, interval=(0.0, 1.0))(x, 0.5)
    assert torch.equal(out[:, :3], whole[:, :3])
    assert torch.equal(out[:, 3], labels.float()[:, None, None].expand(3, 2, 2))


def test_a_scale_of_one_costs_one_pass() -> None:
    model, x = Recorder(), torch.zeros(2, 4, 2, 2)
    guided(model, torch.tensor([1, 2]), 10, scale=1.0, interval=(0.0, 1.0))(x, 0.5)
    assert model.sizes == [2]
