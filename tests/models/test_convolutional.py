"""The classic autoencoder beside diffusers' own: its numbers, its folder, and what is said of a folder that is something else."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from vtp import VisualTokenizer
from vtp.config import ConvolutionalParams, load
from vtp.models.base import Tokenizer
from vtp.models.convolutional import CARD, FILES, WEIGHTS, ConvolutionalTokenizer, config_of, differences
from vtp.models.given import as_it_is, go_on_from
from vtp.models.kinds import open_tokenizer
from vtp.seeding import forked, generator

PARAMS = replace(load().tokenizer, patch=4, latent_channels=6, convolutional=ConvolutionalParams(8, 1, 1))
FORMS = {
    "ours": {},
    "plain": {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    "scaled": {"scaling_factor": 0.18215, "shift_factor": 0.1, "latents_mean": [0.5] * 6, "sample_size": [32, 48]},
}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator(0, "pixels"))


def theirs(folder: Path, **changes: object) -> AutoencoderKL:
    """A network as diffusers makes and saves it."""
    with forked(1, "theirs"):
        network = AutoencoderKL(**config_of(PARAMS, 32) | changes).eval()
    network.save_pretrained(folder)
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs(tmp_path / "given")
    return tmp_path / "given"


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_latents_and_pictures_are_diffusers_whatever_scales_its_configuration_has(form, tmp_path):
    network, shown = theirs(tmp_path / "given", **FORMS[form]), pixels(2, 3, 16, 24)
    tokenizer = open_tokenizer(tmp_path / "given")
    latents = tokenizer.encode(shown)
    torch.testing.assert_close(latents, network.encode(2 * shown - 1).latent_dist.mode(), rtol=0, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode(latents), (network.decode(latents).sample + 1) / 2, rtol=0, atol=1e-6)
    mean, log_variance = tokenizer.posterior(shown)
    torch.testing.assert_close(log_variance, network.encode(2 * shown - 1).latent_dist.logvar, rtol=0, atol=1e-6)
    assert (tokenizer.image_size, tokenizer.downsample, tokenizer.latent_channels) == (32, 4, 6)
    assert latents.shape == (2, 6, 4, 6)
    assert torch.equal(mean, latents)


@torch.no_grad()
def test_probes_read_what_goes_into_the_last_convolution_and_the_mean_latent(tmp_path):
    network, shown = theirs(tmp_path / "given"), pixels(2, 3, 16, 16)
    seen = []
    network.encoder.conv_out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.encode(2 * shown - 1)
    found = open_tokenizer(tmp_path / "given").pooled(shown)
    assert found.keys() == {"trunk", "bottleneck"}
    torch.testing.assert_close(found["trunk"], seen[0].mean((2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["bottleneck"], network.encode(2 * shown - 1).latent_dist.mode().mean((2, 3)))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_what_is_saved_is_a_folder_of_diffusers_with_equal_tensors_and_equal_latents(form, tmp_path):
    first, shown = theirs(tmp_path / "given", **FORMS[form]), pixels(1, 3, 16, 16)
    tokenizer = open_tokenizer(tmp_path / "given")
    tokenizer.save_pretrained(tmp_path / "saved")
    network, report = AutoencoderKL.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {*FILES, CARD}
    assert all(tensor.equal(network.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert network.encode(2 * shown - 1).latent_dist.mode().equal(first.encode(2 * shown - 1).latent_dist.mode())
    assert {key: value for key, value in network.config.items() if key != "_name_or_path"} == {
        key: value for key, value in first.config.items() if key != "_name_or_path"
    }
    open_tokenizer(tmp_path / "saved").save_pretrained(tmp_path / "again")
    for name in (*FILES, CARD):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_a_fresh_one_hangs_on_the_seed_alone_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    one, same, other = (ConvolutionalTokenizer.new(PARAMS, 32, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.equal(same[name]) for name, tensor in one.items())
    assert not one["encoder.trunk.conv_in.weight"].equal(other["encoder.trunk.conv_in.weight"])
    assert all(p.requires_grad for p in ConvolutionalTokenizer.new(PARAMS, 32, 0).parameters())


def test_the_form_is_the_known_one_at_its_size():
    """Stable Diffusion's first autoencoder: f8, 4 channels."""
    params = replace(PARAMS, patch=8, latent_channels=4, convolutional=ConvolutionalParams(128, 2, 2))
    known = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32, "latent_channels": 4}
    assert known.items() <= config_of(params, 512).items()
    assert config_of(params, 512)["scaling_factor"] == 1.0
    with torch.device("meta"):
        assert sum(p.numel() for p in AutoencoderKL(**config_of(params, 512)).parameters()) == 83_653_863
    assert len(config_of(replace(params, patch=1), 32)["block_out_channels"]) == 1


def test_the_kind_is_told_by_the_folder(tmp_path, folder):
    from tests.models.test_official import built

    built().save_pretrained(tmp_path / "ours")
    kinds = [type(open_tokenizer(path)) for path in (tmp_path / "ours", folder)]
    assert kinds == [VisualTokenizer, ConvolutionalTokenizer]
    assert all(issubclass(kind, Tokenizer) for kind in kinds)
    assert not any(p.requires_grad for p in open_tokenizer(folder).parameters())
    assert not open_tokenizer(folder).training


def test_scales_are_said_to_be_left_aside(folder, caplog):
    change(folder, scaling_factor=0.5)
    with caplog.at_level(logging.INFO, "vtp"):
        open_tokenizer(folder)
    assert "scaling_factor=0.5 not applied: latents are normalised by their own statistics" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, r"_class_name is AutoencoderTiny; of diffusers' autoencoders AutoencoderKL is read"),
        ({"wavelets": 2}, "does not know wavelets; bring it up to date"),
        ({"in_channels": 1}, "in_channels and out_channels are 1 and 3; pictures have 3"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "must be equally long"),
        ({"latent_channels": 5}, "given: diffusers cannot read it: .*conv"),
        ({"layers_per_block": 2}, "the tensors are not those of config.json; missing: .*decoder.up_blocks"),
        ({"use_quant_conv": False}, "not known: quant_conv.bias, quant_conv.weight"),
        ({"block_out_channels": [], "down_block_types": [], "up_block_types": []}, "diffusers cannot read it"),
        ({"norm_num_groups": 7}, "diffusers cannot read it: .*divisible"),
    ],
    ids=str,
)
def test_a_configuration_of_something_else_is_refused_in_one_line(changes, words, folder):
    change(folder, **changes)
    with pytest.raises(ValueError, match=words) as told:
        open_tokenizer(folder)
    assert "\n" not in str(told.value)
    assert str(folder) in str(told.value)


def test_another_class_as_diffusers_saves_it_is_refused(tmp_path):
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="_class_name is AutoencoderTiny"):
        as_it_is(tmp_path / "tiny", 32)


def test_weights_must_be_there_whole_and_no_pickle(folder):
    file = folder / WEIGHTS
    file.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors is missing; save the weights as safetensors"):
        open_tokenizer(folder)
    file.write_bytes((folder / "diffusion_pytorch_model.bin").read_bytes()[:-100])
    with pytest.raises(ValueError, match="given: diffusers cannot read it"):
        open_tokenizer(folder)


@torch.no_grad()
def test_the_attention_names_of_2022_are_read(folder):
    from safetensors.torch import load_file, save_file

    shown, now = pixels(1, 3, 16, 16), open_tokenizer(folder)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert open_tokenizer(folder).encode(shown).equal(now.encode(shown))


def test_a_changed_file_beside_a_manifest_is_noticed(folder):
    from vtp.artifacts import write_manifest

    write_manifest(folder, {})
    change(folder, sample_size=64)
    with pytest.raises(ValueError, match=r"config\.json"):
        open_tokenizer(folder)


def test_other_things_in_a_folder_are_not_overwritten(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which would be lost"):
        ConvolutionalTokenizer.new(PARAMS, 32, 0).save_pretrained(folder)


def test_without_diffusers_the_package_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for use in (lambda: open_tokenizer(folder), lambda: ConvolutionalTokenizer.new(PARAMS, 32, 0)):
        with pytest.raises(ValueError, match=r"needs diffusers, .*; `pip install diffusers`") as told:
            use()
        assert "\n" not in str(told.value)


def test_pictures_and_latents_of_another_form_are_refused():
    tokenizer = ConvolutionalTokenizer.new(PARAMS, 32, 0)
    with pytest.raises(ValueError, match="multiples of the patch, 4"):
        tokenizer.encode(pixels(1, 3, 18, 16))
    with pytest.raises(ValueError, match=r"expected floats in \[0, 1\]"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected floats \(B, 6, h, w\)"):
        tokenizer.decode(torch.zeros(1, 4, 4, 4))


def test_given_ones_fit_the_pictures_or_are_refused(folder):
    assert as_it_is(folder, 32).downsample == 4
    with pytest.raises(ValueError, match=r"data\.image_size=30 is not a multiple of 4"):
        as_it_is(folder, 30)


def test_training_goes_on_from_weights_of_the_same_form_only(tmp_path, folder):
    from tests.models.test_official import built

    change(folder, scaling_factor=0.2, sample_size=256)
    tokenizer = ConvolutionalTokenizer.new(PARAMS, 32, 0)
    go_on_from(tokenizer, folder)
    assert all(tensor.equal(open_tokenizer(folder).state_dict()[name]) for name, tensor in tokenizer.state_dict().items())
    assert all(p.requires_grad for p in tokenizer.parameters())
    other = ConvolutionalTokenizer.new(replace(PARAMS, convolutional=ConvolutionalParams(8, 0, 1)), 32, 0)
    assert differences(other.config, tokenizer.config) == ["block_out_channels ([8, 16, 16], not [8, 8, 8])"]
    with pytest.raises(ValueError, match=r"block_out_channels \(\[8, 16, 16\], not \[8, 8, 8\]\); set tokenizer to its values"):
        go_on_from(other, folder)
    built().save_pretrained(tmp_path / "transformers")
    with pytest.raises(ValueError, match="VisualTokenizer, not ConvolutionalTokenizer; set tokenizer"):
        go_on_from(tokenizer, tmp_path / "transformers")
