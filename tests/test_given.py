"""The pipeline from a tokenizer in the published layout: used as it is to samples and a report; trained on; pinned."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.clones import TINY, change, sh

pytestmark = pytest.mark.slow

ORACLE = Path(__file__).parent / "oracles" / "vtp_a"


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A folder in the published layout, outside of the project."""
    folder = tmp_path_factory.mktemp("given") / "VTP-Tiny-f16d16"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ORACLE / name, folder / name)
        (folder / name).chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def project(finished_copy) -> Path:
    """A finished clone: what no tokenizer changes is there."""
    return finished_copy()


def test_a_given_tokenizer_ends_in_samples_and_a_report(project, official):
    change(project, *TINY, f"tokenizer.source=pretrained:{official}")
    assert "run `python -m vtp pin`" in sh(project, "dvc", "repro", ok=False)
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro")
    for stage in ("pretrain", "finetune_decoder"):
        given, made = load_file(official / "model.safetensors"), load_file(project / "data" / stage / "model.safetensors")
        assert given.keys() == made.keys()
        changed = {name.split(".")[0] for name in given if not given[name].equal(made[name])}
        assert changed == (set() if stage == "pretrain" else {"pixel_decoder"})
    assert (project / "data" / "pretrain" / "model.safetensors").read_bytes() == (official / "model.safetensors").read_bytes()
    numbers = json.loads((project / "reports" / "pretrain.json").read_text())
    assert numbers["loss"] is None
    assert numbers["step"] == 0
    summary = json.loads((project / "reports" / "summary.json").read_text())
    assert summary["objective"] == "given"
    assert summary["zero_shot_top1"] is None  # a vocabulary of 512 ids cannot be asked in words
    assert summary["linear_probe_top1"] > 0
    assert (project / "reports" / "pictures" / "samples.png").is_file()
    for command in ("metrics", "plots"):
        sh(project, "dvc", command, "show")
    assert "license: other" in (project / "data" / "finetune_decoder" / "README.md").read_text()
    # A cut file is noticed, whatever DVC remembers: the stage runs again when its parameters change.
    with (official / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    change(project, *TINY, f"tokenizer.source=pretrained:{official}", "tokenizer.patch=8", "dit.patch=2")
    assert "model.safetensors has another size" in sh(project, "dvc", "repro", "pretrain", ok=False)


def test_a_convolutional_autoencoder_of_others_ends_in_samples_and_a_report(project, tmp_path):
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": [8, 8, 16, 16, 16], "norm_num_groups": 4, "latent_channels": 4, "sample_size": 64}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5}
    AutoencoderKL(**sizes, **blocks).save_pretrained(tmp_path / "vae")
    change(project, *TINY, f"tokenizer.source=pretrained:{tmp_path / 'vae'}")
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro")
    weights = "diffusion_pytorch_model.safetensors"
    given, made = load_file(tmp_path / "vae" / weights), load_file(project / "data" / "finetune_decoder" / weights)
    changed = {name.split(".")[0] for name in given if not given[name].equal(made[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert (project / "data" / "pretrain" / weights).read_bytes() == (tmp_path / "vae" / weights).read_bytes()
    assert AutoencoderKL.from_pretrained(project / "data" / "finetune_decoder").config.scaling_factor == 0.18215
    summary = json.loads((project / "reports" / "summary.json").read_text())
    assert (summary["objective"], summary["zero_shot_top1"]) == ("given", None)
    assert summary["linear_probe_top1"] > 0
    with (tmp_path / "vae" / weights).open("r+b") as file:
        file.truncate(1000)
    change(project, *TINY, f"tokenizer.source=pretrained:{tmp_path / 'vae'}", "tokenizer.patch=8", "dit.patch=2")
    assert f"{weights} has another size" in sh(project, "dvc", "repro", "pretrain", ok=False)


def test_training_goes_on_from_a_tokenizer_of_the_same_form(project, tmp_path):
    change(project, *TINY)
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro", "pretrain")
    start = tmp_path / "start"
    shutil.copytree(project / "data" / "pretrain", start)
    first = json.loads((project / "reports" / "pretrain.json").read_text())
    change(project, *TINY, f"pretrain.init_from={start}")
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro", "pretrain")
    second = json.loads((project / "reports" / "pretrain.json").read_text())
    assert second["step"] == first["step"]
    assert second["loss"] < first["loss"]
    change(project, *TINY, f"pretrain.init_from={start}", "data.context_length=20", "tokenizer.encoder.qk_norm=false")
    said = sh(project, "dvc", "repro", "pretrain", ok=False)
    assert "text.context_length (24, not 20)" in said
    assert "encoder.block.qk_norm (True, not False)" in said


def test_latents_and_a_transformer_from_elsewhere_give_the_samples_they_gave_there(project, tmp_path):
    change(project, *TINY)
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro", "sample")
    data = project / "data"
    weights, samples = data / "train_dit" / "model.safetensors", data / "sample" / "latents.safetensors"
    before = weights.read_bytes(), samples.read_bytes()
    # What a user of the published scripts has: shards with pickled statistics, and a checkpoint.
    latents, dit = tmp_path / "latents", tmp_path / "dit.pt"
    latents.mkdir()
    for file in (data / "extract_latents").iterdir():
        if file.name not in ("manifest.json", "latents_stats.st"):
            shutil.copy(file, latents / file.name)
    sh(project, sys.executable, "-m", "vtp", "export-dit", str(data / "train_dit"), "--out", str(dit))

    change(project, *TINY, f"latents.source=pretrained:{latents}")
    assert "pins no latents" in sh(project, "dvc", "repro", "sample", ok=False)
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro", "sample")
    assert (weights.read_bytes(), samples.read_bytes()) == before

    change(project, *TINY, f"dit.source=pretrained:{dit}")
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro")
    assert (project / "reports" / "index.html").is_file()
    assert (weights.read_bytes(), samples.read_bytes()) == before
    numbers = json.loads((project / "reports" / "dit.json").read_text())
    assert (numbers["step"], numbers["loss"]) == (0, None)

    change(project, *TINY, f"dit.init_from={dit}", "dit.steps=2")
    sh(project, sys.executable, "-m", "vtp", "pin")
    sh(project, "dvc", "repro", "train_dit")
    assert weights.read_bytes() != before[0]
    change(project, *TINY, f"dit.source=pretrained:{dit}", "tokenizer.latent_channels=32")
    said = sh(project, "dvc", "repro", "train_dit", ok=False)
    assert "paints latents of 64 x 4 x 4" in said
    assert "this pipeline's are 32 x 4 x 4" in said
