from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.published_dit import reference
from vtp.models.dit import DiT
from vtp.sampling import Velocity, guided, integrate, time_grid
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
        theirs = torchdiffeq.odeint(lambda t, x: flow(x, t.item()), noise, torch.tensor(grid).double(), method=name)[-1]
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


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("heun3", 3)])
def test_error_falls_with_the_order(solver: str, order: int) -> None:
    noise = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(integrate(lambda x, t: x * math.cos(t), noise, torch.linspace(0, 1, n + 1).tolist(), solver).item() - truth)
        for truth in [math.exp(math.sin(1.0))]
        for n in (16, 32)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


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
