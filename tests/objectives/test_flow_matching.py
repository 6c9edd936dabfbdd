from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vtp.objectives.flow_matching import flow_terms, interpolate, logit_normal_times, velocity_target
from vtp.seeding import generator

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "transport" / "io.safetensors")


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "flow", key))


def test_path_and_target_are_lightningdits() -> None:
    noise, data = ORACLE["x0"], ORACLE["x1"]
    torch.testing.assert_close(interpolate(noise, data, ORACLE["t"]), ORACLE["Linear.xt"], atol=1e-6, rtol=0)
    torch.testing.assert_close(velocity_target(noise, data), ORACLE["Linear.ut"], atol=1e-6, rtol=0)


def test_the_path_runs_from_noise_to_data_at_the_target_velocity() -> None:
    noise, data = normal(3, 2, 2, 2, key="noise"), normal(3, 2, 2, 2, key="data")
    assert torch.equal(interpolate(noise, data, torch.zeros(3)), noise)
    assert torch.equal(interpolate(noise, data, torch.ones(3)), data)
    slope = (interpolate(noise, data, torch.full((3,), 0.75)) - interpolate(noise, data, torch.full((3,), 0.25))) / 0.5
    torch.testing.assert_close(slope, velocity_target(noise, data), atol=1e-5, rtol=0)


def test_interpolation_is_its_naive_loop() -> None:
    noise, data, t = normal(3, 2, 2, 2, key="noise"), normal(3, 2, 2, 2, key="data"), torch.tensor([0.0, 0.3, 0.9])
    actual = interpolate(noise, data, t)
    for i in range(3):
        torch.testing.assert_close(actual[i], float(t[i]) * data[i] + (1 - float(t[i])) * noise[i])


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (-0.5, 1.25), (-0.75, 1.0)])
def test_times_are_logit_normal(mu: float, sigma: float) -> None:
    times = logit_normal_times(ORACLE["lognorm.base_normal"], mu, sigma)
    torch.testing.assert_close(times, ORACLE[f"lognorm.t_mu{mu}_sigma{sigma}"], atol=1e-6, rtol=0)


def test_terms_are_lightningdits() -> None:
    terms = flow_terms(ORACLE["Linear.pred"], ORACLE["Linear.ut"])
    torch.testing.assert_close(terms["velocity"], ORACLE["Linear.mse"].mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(terms["cosine"], ORACLE["Linear.cos"].mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(terms["velocity"] + terms["cosine"], ORACLE["Linear.total"], atol=1e-5, rtol=1e-5)


def test_terms_are_their_naive_loop() -> None:
    prediction, target = normal(2, 3, 2, 2, key="prediction"), normal(2, 3, 2, 2, key="target")
    velocity = cosine = 0.0
    for i in range(2):
        for y in range(2):
            for x in range(2):
                a, b = prediction[i, :, y, x], target[i, :, y, x]
                velocity += float((a - b) @ (a - b)) / 24
                cosine += (1 - float(a @ b / a.norm() / b.norm())) / 8
    terms = flow_terms(prediction, target)
    assert terms["velocity"].item() == pytest.approx(velocity, abs=1e-5)
    assert terms["cosine"].item() == pytest.approx(cosine, abs=1e-5)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    prediction, target = normal(2, 3, 2, 2, key="prediction").bfloat16(), normal(2, 3, 2, 2, key="target")
    expected = flow_terms(prediction.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flow_terms(prediction, target) == expected
