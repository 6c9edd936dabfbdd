from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.models.test_dit import oracle
from vtp.models.dit import DiT
from vtp.sampling import Velocity, guided, integrate, time_grid
from vtp.seeding import generator

FOLDER = Path(__file__).parent / "oracles" / "transport"
CONFIG = json.loads((FOLDER / "config.json").read_text())
SOLVER = {"euler": "euler", "heun2": "heun", "dopri5": "dopri5"}
RUNS = {name: run for name, run in CONFIG["runs"].items() if run["method"] in SOLVER}


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> DiT:
    return oracle("lightningdit_a")[0]


def run_velocity(model: DiT, io: dict[str, Tensor], run: dict) -> tuple[Velocity, list[float]]:
    """The flow of one reference run, and the times it is asked for."""
    scale = CONFIG["oracle"]["cfg_scale"] if run["cfg"] else 1.0
    start = run["cfg_interval_start"] or 0.0
    flow = guided(model, io["sample.y"], CONFIG["null_label"], scale=scale, interval=(start, 1.0), channels=3)
    times: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return flow(x, t)

    return velocity, times


@pytest.mark.parametrize("shift", ["0.075", "0.3", "2.0"])
def test_grid_equals_the_reference(io: dict[str, Tensor], shift: str) -> None:
    torch.testing.assert_close(torch.tensor(time_grid(8, float(shift))), io[f"grid.shift{shift}"], atol=1e-7, rtol=0)
    assert torch.equal(torch.tensor(time_grid(8, 1.0)), io["grid.plain"])


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["method"] != "dopri5"])
def test_fixed_steps_follow_the_reference(io: dict[str, Tensor], model: DiT, name: str) -> None:
    run, path = RUNS[name], io[f"sample.{name}"]
    velocity, times = run_velocity(model, io, run)
    grid = time_grid(run["num_steps"], run["timestep_shift"] or 1.0)
    for k in range(1, len(grid)):
        times.clear()
        reached = integrate(velocity, io["sample.z"], grid[: k + 1], SOLVER[run["method"]])
        torch.testing.assert_close(reached, path[k], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(times), io[f"sample.{name}.model_times"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["method"] == "dopri5"])
def test_adaptive_steps_end_where_the_reference_does(io: dict[str, Tensor], model: DiT, name: str) -> None:
    velocity, times = run_velocity(model, io, RUNS[name])
    reached = integrate(velocity, io["sample.z"], [0.0, 1.0], "dopri5")
    # The reference steps beyond 1, where the model was never trained, and interpolates back; this one lands on 1.
    assert (reached - io[f"sample.{name}"]).norm() < 1e-3 * reached.norm()
    assert max(times) == 1.0
    assert len(times) == RUNS[name]["model_calls"]


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


@pytest.mark.parametrize("name", ["dopri5_cfg", "dopri5_cfg_interval"])
def test_adaptive_steps_are_those_of_torchdiffeq(io: dict[str, Tensor], model: DiT, name: str) -> None:
    flow, times = run_velocity(model, io, RUNS[name])
    ours = integrate(flow, io["sample.z"], [0.0, 1.0], "dopri5")
    ours_calls = len(times)
    theirs, calls = landing(flow, io["sample.z"])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert ours_calls == calls


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


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
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
    with pytest.raises(ValueError, match="midpoint"):
        integrate(lambda x, t: x, torch.ones(1), [0.0, 1.0], "midpoint")
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
