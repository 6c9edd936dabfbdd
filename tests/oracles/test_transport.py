"""Flow matching and its samplers: paths, targets, losses and gradients, grids, and every step of every stored trajectory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from tests.oracles.published_dit import reference
from vtp.models.dit import DiT
from vtp.objectives.flow_matching import flow_terms, interpolate, logit_normal_times, velocity_target
from vtp.sampling import Velocity, guided, integrate, time_grid

ORACLE = load_file(FOLDER / "transport" / "io.safetensors")
CONFIG = json.loads((FOLDER / "transport" / "config.json").read_text())
SOLVER = {"euler": "euler", "heun2": "heun", "heun3": "heun3", "midpoint": "midpoint", "dopri5": "dopri5"}
RUNS = CONFIG["runs"]
PATHS = ["Linear", "GVP"]


@pytest.fixture(scope="module")
def model() -> DiT:
    return reference(CONFIG["model"].removeprefix("../"))[0]


def path_point(path: str, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Share of data and of noise at times t, and their slopes; GVP is a quarter of a circle, which nothing here trains on."""
    if path == "Linear":
        return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)
    quarter = torch.pi / 2
    data, noise = (quarter * t).sin(), (quarter * t).cos()
    return data, noise, quarter * noise, -quarter * data


def wide(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


def test_path_and_target_of_training(compare: Compare) -> None:
    noise, data = ORACLE["x0"], ORACLE["x1"]
    compare("transport", "Linear.xt", interpolate(noise, data, ORACLE["t"]), ORACLE["Linear.xt"])
    compare("transport", "Linear.ut", velocity_target(noise, data), ORACLE["Linear.ut"])


def test_the_other_path(compare: Compare) -> None:
    """What the GVP results below are computed from is what the naive path says, and the linear one is its sibling."""
    for path in PATHS:
        data, noise, data_slope, noise_slope = path_point(path, wide(ORACLE["t"]))
        compare("transport", f"{path}.xt", data * ORACLE["x1"] + noise * ORACLE["x0"], ORACLE[f"{path}.xt"])
        compare("transport", f"{path}.ut", data_slope * ORACLE["x1"] + noise_slope * ORACLE["x0"], ORACLE[f"{path}.ut"])


@pytest.mark.parametrize("path", PATHS)
def test_losses_and_gradients(compare: Compare, model: DiT, path: str) -> None:
    # One sample at a time for the stored rows, all of them for the loss.
    prediction = model(ORACLE[f"{path}.xt"], ORACLE["t"], ORACLE["y"]).detach()
    compare("transport", f"{path}.pred", prediction, ORACLE[f"{path}.pred"])
    each = [flow_terms(p[None], u[None]) for p, u in zip(prediction, ORACLE[f"{path}.ut"], strict=True)]
    compare("transport", f"{path}.mse", torch.stack([terms["velocity"] for terms in each]), ORACLE[f"{path}.mse"])
    compare("transport", f"{path}.cos", torch.stack([terms["cosine"] for terms in each]), ORACLE[f"{path}.cos"])
    watched = {
        "final_linear_weight": model.final_layer.linear.weight,
        "block0_adaln_bias": model.get_parameter("blocks.0.adaLN_modulation.1.bias"),
    }
    for parameter in watched.values():
        parameter.requires_grad_()
    try:
        terms = flow_terms(model(ORACLE[f"{path}.xt"], ORACLE["t"], ORACLE["y"]), ORACLE[f"{path}.ut"])
        total = terms["velocity"] + terms["cosine"]
        grads = torch.autograd.grad(total, list(watched.values()))
    finally:
        model.requires_grad_(False)
    compare("transport", f"{path}.total", total, ORACLE[f"{path}.total"])
    for name, grad in zip(watched, grads, strict=True):
        compare("transport", f"{path}.grad.{name}", grad, ORACLE[f"{path}.grad.{name}"])


@pytest.mark.parametrize("path", PATHS)
def test_score_of_a_velocity(compare: Compare, path: str) -> None:
    """A velocity tells where the noise lies, hence the score, -noise / share of noise: sign and direction of time are right."""
    data, noise, data_slope, noise_slope = path_point(path, wide(ORACLE[f"{path}.score_t"]))
    x, velocity = ORACLE[f"{path}.xt"], ORACLE[f"{path}.pred"]
    guess = (data_slope * x - data * velocity) / (data_slope * noise - data * noise_slope)
    stored = ORACLE[f"{path}.score_from_velocity"]
    size = max(1.0, stored.abs().max().item())
    compare("transport", f"{path}.score_from_velocity", -guess / noise, stored, Tolerance(2e-5 * size, 2e-5 * size))


def test_training_times(compare: Compare) -> None:
    names = [name for name in ORACLE if name.startswith("lognorm.t_")]
    assert names
    for name in names:
        mu, sigma = (float(part) for part in name.removeprefix("lognorm.t_mu").split("_sigma"))
        compare("transport", name, logit_normal_times(ORACLE["lognorm.base_normal"], mu, sigma), ORACLE[name])


def test_grids(compare: Compare) -> None:
    for name in (name for name in ORACLE if name.startswith("grid.")):
        shift = 1.0 if name == "grid.plain" else float(name.removeprefix("grid.shift"))
        compare("transport", name, torch.tensor(time_grid(len(ORACLE[name]), shift)), ORACLE[name])


def flow(model: DiT, run: dict) -> tuple[Velocity, list[float]]:
    """The flow of one reference run, and the times it is asked for."""
    scale = CONFIG["oracle"]["cfg_scale"] if run["cfg"] else 1.0
    interval = (run["cfg_interval_start"] or 0.0, 1.0)
    velocity = guided(model, ORACLE["sample.y"], CONFIG["null_label"], scale=scale, interval=interval, channels=3)
    times: list[float] = []

    def recorded(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return velocity(x, t)

    return recorded, times


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["method"] != "dopri5"])
def test_fixed_steps(compare: Compare, model: DiT, name: str) -> None:
    run, stored = RUNS[name], ORACLE[f"sample.{name}"]
    velocity, times = flow(model, run)
    grid = time_grid(run["num_steps"], run["timestep_shift"] or 1.0)
    reached = [ORACLE["sample.z"]]
    for k in range(1, len(grid)):
        times.clear()
        reached.append(integrate(velocity, ORACLE["sample.z"], grid[: k + 1], SOLVER[run["method"]]))
    assert len(times) == run["model_calls"]
    compare("transport", f"sample.{name}", torch.stack(reached), stored)
    compare("transport", f"sample.{name}.model_times", torch.tensor(times), ORACLE[f"sample.{name}.model_times"])


def doubled(model: DiT, run: dict) -> tuple[Velocity, list[float]]:
    """The same flow for a state that carries its unconditional half along, as the reference's does: its error counts, too."""
    kept, times = flow(model, run)
    null = torch.full_like(ORACLE["sample.y"], CONFIG["null_label"])

    def velocity(x: Tensor, t: float) -> Tensor:
        half = x[: len(x) // 2]
        conditional = kept(half, t)
        unconditional = model(half, torch.full((len(half),), t), null)
        return torch.cat([conditional, torch.cat([conditional[:, :3], unconditional[:, 3:]], 1)])

    return velocity, times


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["method"] == "dopri5"])
def test_adaptive_steps(compare: Compare, model: DiT, name: str) -> None:
    """The reference steps beyond 1, where no model was trained, and interpolates back; this one lands on 1.

    The calls of the first step agree to the last digits. After it, the estimated error is so small that float32's rounding
    decides how much longer the next one is, so of later times only the number is held against the reference, and the end
    within rtol.
    """
    run, stored, start = RUNS[name], ORACLE[f"sample.{name}"], ORACLE["sample.z"]
    velocity, times = doubled(model, run) if run["cfg"] else flow(model, run)
    reached = integrate(velocity, torch.cat([start, start]) if run["cfg"] else start, [0.0, 1.0], "dopri5")[: len(start)]
    size = stored.square().mean().sqrt().item()
    compare("transport", f"sample.{name}", reached, stored, Tolerance(5 * CONFIG["rtol"] * size, CONFIG["rtol"] * size))
    assert len(times) == run["model_calls"]
    theirs = ORACLE[f"sample.{name}.model_times"]
    first = 2 + 6  # two to choose its length, six of its own
    compare("transport", f"sample.{name}.model_times", torch.tensor(times)[:first], theirs[:first])
    assert max(times) == 1.0 <= theirs.max().item()


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"x0", "x1", "t", "y", "lognorm.base_normal", "sample.z", "sample.y", *(f"{path}.score_t" for path in PATHS)}
    kinds = ("xt", "ut", "pred", "mse", "cos", "total", "score_from_velocity")
    compared = {f"{path}.{kind}" for path in PATHS for kind in kinds}
    compared |= {f"{path}.grad.{name}" for path in PATHS for name in ("final_linear_weight", "block0_adaln_bias")}
    compared |= {f"sample.{name}{kind}" for name in RUNS for kind in ("", ".model_times")}
    compared |= {name for name in ORACLE if name.startswith(("lognorm.t_", "grid."))}
    assert set(ORACLE) == inputs | compared
