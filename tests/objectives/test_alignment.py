from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtp.objectives.alignment import alignment_loss
from vtp.seeding import generator


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "alignment", key))


def test_alignment_is_its_naive_loop() -> None:
    projected, features = normal(2, 5, 2, 3, key="projected"), normal(2, 5, 2, 3, key="features")
    distance = cosine = 0.0
    for picture in range(2):
        z = [c / c.norm() for c in projected[picture].flatten(1).T]
        f = [c / c.norm() for c in features[picture].flatten(1).T]
        for i in range(6):
            for j in range(6):
                distance += max(0.0, abs(float(z[i] @ z[j] - f[i] @ f[j])) - 0.25) / 72
            cosine += max(0.0, 1 - 0.5 - float(z[i] @ f[i])) / 12
    losses = alignment_loss(projected, features, distance_margin=0.25, cosine_margin=0.5)
    assert losses["distance"].item() == pytest.approx(distance, abs=1e-6)
    assert losses["cosine"].item() == pytest.approx(cosine, abs=1e-6)


def test_autocast_changes_nothing() -> None:
    projected, features = normal(2, 5, 2, 3, key="projected"), normal(2, 5, 2, 3, key="features")
    expected = alignment_loss(projected, features, distance_margin=0.25, cosine_margin=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert alignment_loss(projected, features, distance_margin=0.25, cosine_margin=0.5) == expected


def test_latents_that_agree_cost_nothing_and_have_no_gradient_inside_the_margins() -> None:
    features = normal(2, 5, 2, 3, key="features")
    projected = (3 * features + 0.01 * normal(2, 5, 2, 3, key="noise")).requires_grad_()
    losses = alignment_loss(projected, features, distance_margin=0.25, cosine_margin=0.5)
    (losses["distance"] + losses["cosine"]).backward()
    assert losses["distance"].item() == losses["cosine"].item() == 0
    assert projected.grad is not None
    assert projected.grad.count_nonzero() == 0


def test_grids_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5, 2, 3\) .* \(2, 5, 4, 3\)"):
        alignment_loss(normal(2, 5, 2, 3, key="z"), normal(2, 5, 4, 3, key="f"), distance_margin=0.25, cosine_margin=0.5)
