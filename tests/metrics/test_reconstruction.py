from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtp import dist
from vtp.metrics.reconstruction import Mean, psnr, ssim

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors")
A, B = ORACLE["metric.a"], ORACLE["metric.b"]


def test_psnr_by_picture() -> None:
    torch.testing.assert_close(psnr(A, B).double(), ORACLE["metric.psnr"].double(), rtol=1e-5, atol=1e-4)


def test_psnr_keeps_errors_below_a_grey_level() -> None:
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert psnr(grey + 0.25 / 255, grey).item() == pytest.approx(20 * math.log10(255 / 0.25), abs=1e-2)
    assert psnr(grey, grey).item() == float("inf")


def test_ssim_by_picture() -> None:
    values = ssim(A, B)
    torch.testing.assert_close(values.double(), ORACLE["metric.ssim_each"].double().flatten(), rtol=1e-5, atol=1e-5)
    assert values.mean().item() == pytest.approx(ORACLE["metric.ssim_batch"].item(), abs=1e-5)
    torch.testing.assert_close(ssim(A, A), torch.ones(len(A)))


def test_decoded_pixels_out_of_range_are_clamped() -> None:
    out = 3 * A - 1
    torch.testing.assert_close(psnr(out, B), psnr(out.clamp(0, 1), B))
    torch.testing.assert_close(ssim(out, B), ssim(out.clamp(0, 1), B))
    assert not torch.allclose(out, out.clamp(0, 1))


def test_mean_counts_pictures_not_batches() -> None:
    values = torch.rand(10, generator=torch.Generator().manual_seed(0))
    mean = Mean()
    for part in values.split([4, 4, 2]):
        mean.add(part)
    assert mean.compute() == pytest.approx(values.double().mean().item(), abs=1e-12)
    assert abs(torch.stack([part.mean() for part in values.split([4, 4, 2])]).mean() - values.mean()) > 1e-3


def test_mean_over_ranks_weighs_by_their_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = Mean()
    mean.add(torch.tensor([1.0, 2.0]))
    monkeypatch.setattr(dist, "total", lambda value: value + torch.tensor([9.0, 1.0], dtype=torch.float64))
    assert mean.compute() == 4.0


def test_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        Mean().compute()
