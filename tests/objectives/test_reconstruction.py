from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vtp.objectives.reconstruction import kl_loss, l1_loss
from vtp.seeding import generator


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "reconstruction", key))


def test_l1_is_its_naive_loop() -> None:
    decoded, images = normal(2, 3, 2, 2, key="decoded"), normal(2, 3, 2, 2, key="images")
    loss = sum(abs(a - b) for a, b in zip(decoded.flatten().tolist(), images.flatten().tolist(), strict=True)) / 24
    assert l1_loss(decoded, images).item() == pytest.approx(loss, abs=1e-6)
    assert l1_loss(decoded.bfloat16(), images).dtype == torch.float32


def test_kl_is_its_naive_loop_and_torchs() -> None:
    mean, log_variance = normal(2, 3, 2, 2, key="mean"), normal(2, 3, 2, 2, key="log_variance")
    loss = 0.0
    for m, v in zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True):
        loss += (m * m + math.exp(v) - 1 - v) / 2 / 2
    assert kl_loss(mean, log_variance).item() == pytest.approx(loss, rel=1e-5)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert kl_loss(mean, log_variance).item() == pytest.approx(theirs.sum().item() / 2, rel=1e-5)
    assert kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
