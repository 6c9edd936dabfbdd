"""What is measured of a tokenizer, and what it may be called."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from vtp import evaluation
from vtp.config import load
from vtp.seeding import generator


class Pictures:
    """Twelve random pictures, as a split hands them out."""

    def __len__(self) -> int:
        return 12

    def image(self, i: int) -> torch.Tensor:
        return torch.randint(256, (3, 16, 16), generator=generator(0, "pictures", i), dtype=torch.uint8)


@pytest.mark.parametrize(("features", "name"), [("metric", "rfd"), ("inception", "rfid")])
def test_only_a_distance_in_inceptions_features_is_called_fid(features, name):
    params = dataclasses.replace(load().evaluate, features=features, batch=5)
    darker = SimpleNamespace(encode=lambda pixels: pixels, decode=lambda latents: latents / 2)
    found = evaluation.reconstruction(
        darker,
        Pictures(),
        lambda pictures: (pictures.float().mean((2, 3)) / 255, pictures),
        lambda first, second: (first - second).abs().mean((1, 2, 3)),
        params,
        torch.device("cpu"),
    )
    assert set(found) == {"psnr", "ssim", "distance", name}
    assert found[name] > 0.1
    pictures = torch.stack([Pictures().image(i) for i in range(12)]) / 255
    assert found["distance"] == pytest.approx(float(pictures.mean()), rel=1e-5)  # 2 * |p / 2 - p| in [-1, 1]
    errors = (pictures / 2).square().mean((1, 2, 3))
    assert found["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
