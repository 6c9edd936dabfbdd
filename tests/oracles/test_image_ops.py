"""Crop, de-normalisation, 8-bit conversion, PSNR, SSIM and Frechet distance, as the published scripts compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.data.pictures import centre_crop
from vtp.evaluation import to_uint8
from vtp.metrics.generation import frechet
from vtp.metrics.reconstruction import psnr, ssim
from vtp.models.tokenizer import denormalize

ORACLE = load_file(FOLDER / "image_ops" / "io.safetensors")
ONE_LEVEL = Tolerance(1, 1)
CROPS = sorted(name.removesuffix(".input") for name in ORACLE if name.startswith("crop") and name.endswith(".input"))


@pytest.mark.parametrize("name", CROPS)
def test_centre_crop(compare: Compare, name: str) -> None:
    expected = ORACLE[f"{name}.output"]
    found = centre_crop(Image.fromarray(ORACLE[f"{name}.input"].numpy()), len(expected))
    compare("image_ops", f"{name}.output", torch.from_numpy(np.array(found)), expected, ONE_LEVEL)


def test_denormalize(compare: Compare) -> None:
    compare("image_ops", "decode.unit_range", denormalize(ORACLE["decode.normalised"]), ORACLE["decode.unit_range"])


@pytest.mark.parametrize("name", ["decode.uint8_vtp_tokenizer", "decode.uint8_reconstruction_eval"])
def test_eight_bits_round_where_the_published_scripts_truncate(compare: Compare, name: str) -> None:
    pixels = denormalize(ORACLE["decode.normalised"])
    ours, theirs = to_uint8(pixels), ORACLE[name].permute(0, 3, 1, 2)
    compare("image_ops", name, (pixels.clamp(0, 1) * 255).to(torch.uint8), theirs, Tolerance(0, 0))
    assert set((ours.int() - theirs.int()).unique().tolist()) == {0, 1}


def test_eight_bits_round_as_va_vae_does(compare: Compare) -> None:
    ours = to_uint8(ORACLE["decode.half_normalised"] / 2 + 0.5)
    compare("image_ops", "decode.uint8_vavae", ours.permute(0, 2, 3, 1), ORACLE["decode.uint8_vavae"], Tolerance(0, 0))


def test_psnr_and_ssim(compare: Compare) -> None:
    a, b = ORACLE["metric.a"], ORACLE["metric.b"]
    decibels, similarity = psnr(a, b), ssim(a, b)
    compare("image_ops", "metric.psnr", decibels.to(ORACLE["metric.psnr"].dtype), ORACLE["metric.psnr"], Tolerance(1e-4, 1e-4))
    each = ORACLE["metric.ssim_each"]
    compare("image_ops", "metric.ssim_each", similarity.to(each.dtype).view_as(each), each)
    batch = ORACLE["metric.ssim_batch"]
    compare("image_ops", "metric.ssim_batch", similarity.mean().to(batch.dtype).view_as(batch), batch)


def test_frechet_distance(compare: Compare) -> None:
    expected = ORACLE["fid.value"]
    found = torch.tensor(frechet(ORACLE["fid.act1"], ORACLE["fid.act2"]), dtype=expected.dtype).view_as(expected)
    compare("image_ops", "fid.value", found, expected, Tolerance(1e-6 * expected.item(), 1e-6 * expected.item()))


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"decode.normalised", "decode.half_normalised", "metric.a", "metric.b", "fid.act1", "fid.act2"}
    inputs |= {f"{name}.input" for name in CROPS}
    outputs = {f"{name}.output" for name in CROPS} | {"decode.unit_range", "decode.uint8_vtp_tokenizer", "fid.value"}
    outputs |= {"decode.uint8_reconstruction_eval", "decode.uint8_vavae", "metric.psnr", "metric.ssim_each", "metric.ssim_batch"}
    assert inputs | outputs == set(ORACLE)
