"""The public methods and the file format; tests/oracles holds every tensor of the published model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtp import VisualTokenizer
from vtp.models.tokenizer import denormalize

ORACLES = Path(__file__).parents[1] / "oracles"


@pytest.fixture(scope="module")
def oracle() -> tuple[VisualTokenizer, dict[str, torch.Tensor]]:
    return VisualTokenizer.from_pretrained(ORACLES / "vtp_a"), load_file(ORACLES / "vtp_a" / "io.safetensors")


@torch.no_grad()
def test_pixels_are_normalised_inside(oracle):
    model, io = oracle
    pixels = denormalize(io["64x64.image"])
    # Not the oracle's own input bit for bit: un-normalising rounds, and bfloat16 RoPE magnifies a last bit.
    torch.testing.assert_close(model.encode(pixels), io["64x64.latents"], atol=2e-3, rtol=0)
    torch.testing.assert_close(model.decode(io["64x64.latents"]), denormalize(io["64x64.decoded"]), atol=2e-3, rtol=0)


def test_reading_and_saving_leaves_the_file_as_it_was(oracle, tmp_path):
    model, _ = oracle
    for name in ("vtp_a", "vtp_b"):
        VisualTokenizer.from_pretrained(ORACLES / name).save_pretrained(tmp_path / name)
        theirs = (ORACLES / name / "model.safetensors").read_bytes()
        assert (tmp_path / name / "model.safetensors").read_bytes() == theirs
    again = VisualTokenizer.from_pretrained(tmp_path / "vtp_a")
    assert again.options == model.options


def test_config_has_the_published_keys(oracle, tmp_path):
    model, _ = oracle
    model.save_pretrained(tmp_path)
    mine = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((ORACLES / "vtp_a" / "config.json").read_text())
    for key, value in theirs.items():
        assert key == "transformers_version" or mine[key] == value, key


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (torch.zeros(1, 3, 64, 65), "multiples"),
        (torch.zeros(1, 1, 64, 64), "expected"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "255"),
    ],
)
def test_wrong_pictures_are_refused_by_name(oracle, pixels, word):
    with pytest.raises(ValueError, match=word):
        oracle[0].encode(pixels)


@pytest.mark.parametrize(
    "latents", [torch.zeros(1, 5, 2, 2), torch.zeros(16, 2, 2), torch.zeros(1, 16, 0, 2), torch.ones(1, 16, 2, 2).long()]
)
def test_wrong_latents_are_refused_by_name(oracle, latents):
    with pytest.raises(ValueError, match=r"expected floats \(B, 16, h, w\)"):
        oracle[0].decode(latents)


def test_a_tokenizer_that_the_published_code_would_misread_is_saved_with_a_warning(oracle, tmp_path, caplog):
    options = oracle[0].options
    oracle[0].save_pretrained(tmp_path / "a")
    assert not caplog.records
    odd = replace(options, encoder=replace(options.encoder, patch=8, registers=2), decoder=replace(options.decoder, patch=8))
    VisualTokenizer(odd).save_pretrained(tmp_path / "b")
    assert "patch=8, where it shuffles pixels by 16; registers=2" in caplog.text


def test_what_was_used_in_inference_mode_can_be_trained_afterwards():
    """Tables that it made there are plain tensors."""
    model = VisualTokenizer.from_pretrained(ORACLES / "vtp_a")
    pixels = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model.decode(model.encode(pixels))
    model.train().requires_grad_(True)
    (model.decode(model.encode(pixels)) - pixels).square().mean().backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_what_probes_read_is_the_class_token_beside_the_mean_patch_and_the_mean_latent(oracle):
    model, _ = oracle
    pixels = torch.rand(2, 3, 64, 64)
    found, features = model.pooled(pixels), model.features(pixels)
    for i in range(2):
        mean = sum(features.patches[i]) / len(features.patches[i])
        torch.testing.assert_close(found["trunk"][i], torch.cat([features.cls[i], mean]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["bottleneck"], model.encode(pixels).mean((2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["image"], model.encode_image(pixels))
