from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtp.objectives.flow_matching import flow_terms, interpolate, logit_normal_times, velocity_target
from vtp.seeding import generator


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "flow", key))


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


def test_times_are_their_naive_loop() -> None:
    draws = normal(5, key="times")
    times = logit_normal_times(draws, -0.5, 1.25)
    for n, t in zip(draws.tolist(), times.tolist(), strict=True):
        assert t == pytest.approx(1 / (1 + math.exp(0.5 - 1.25 * n)), abs=1e-6)


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


def test_the_direction_error_is_steep_at_zero_where_the_published_one_is() -> None:
    """What its docstring says of a last layer that starts at zero; a change of the loss has to change that, too."""
    prediction, target = torch.zeros(2, 3, 2, 2, requires_grad=True), normal(2, 3, 2, 2, key="target")
    (grad,) = torch.autograd.grad(flow_terms(prediction, target)["cosine"], prediction)
    torch.testing.assert_close(grad, -F.normalize(target, dim=1) * 1e8 / 8, rtol=1e-4, atol=0)
    published = (1 - F.cosine_similarity(prediction, target, dim=1)).mean((1, 2)).mean()
    assert torch.equal(torch.autograd.grad(published, prediction)[0], grad)
