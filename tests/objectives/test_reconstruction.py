from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vtp.objectives.reconstruction import alignment_loss, l1_loss
from vtp.seeding import generator

FOLDER = Path(__file__).parents[1] / "oracles"
ORACLE = load_file(FOLDER / "vf_loss" / "io.safetensors")


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "reconstruction", key))


def test_l1_is_its_naive_loop() -> None:
    decoded, images = normal(2, 3, 2, 2, key="decoded"), normal(2, 3, 2, 2, key="images")
    loss = sum(abs(a - b) for a, b in zip(decoded.flatten().tolist(), images.flatten().tolist(), strict=True)) / 24
    assert l1_loss(decoded, images).item() == pytest.approx(loss, abs=1e-6)
    assert l1_loss(decoded.bfloat16(), images).dtype == torch.float32


def test_l1_is_the_reference_models() -> None:
    assert l1_loss(ORACLE["reconstruction"], ORACLE["image"]).item() == pytest.approx(ORACLE["margins.rec_loss"].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("run", "distance_margin", "cosine_margin", "terms"),
    [
        ("margins", 0.25, 0.5, ("distance", "cosine")),
        ("no_margin", 0.0, 0.0, ("distance", "cosine")),
        ("only_distmat", 0.25, 0.5, ("distance",)),
        ("only_cos", 0.25, 0.5, ("cosine",)),
    ],
)
def test_alignment_is_va_vaes(run: str, distance_margin: float, cosine_margin: float, terms: tuple[str, ...]) -> None:
    losses = alignment_loss(
        ORACLE["z_projected"], ORACLE["aux_feature"], distance_margin=distance_margin, cosine_margin=cosine_margin
    )
    loss = torch.stack([losses[name] for name in terms]).sum()
    torch.testing.assert_close(loss, ORACLE[f"{run}.vf_loss"], atol=1e-5, rtol=1e-5)


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
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert alignment_loss(projected, features, distance_margin=0.25, cosine_margin=0.5) == losses
