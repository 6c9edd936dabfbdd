"""The command line for people who only want to use what was trained: on a small pipeline's outputs in a folder of their own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import vtp.__main__ as program
from tests.tasks.conftest import build
from vtp import artifacts, use
from vtp.config import ConfigError, load
from vtp.data.latents import load_statistics, save_statistics
from vtp.data.shards import ClassInfo
from vtp.models.tokenizer import VisualTokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """`data/` as the pipeline leaves it, of tiny untrained models; two pictures beside it."""
    folder = tmp_path_factory.mktemp("project")
    tokenizer = build("pretrain").tokenizer
    tokenizer.save_pretrained(folder / "data" / "finetune_decoder")
    build("dit").models["dit"].save_pretrained(folder / "data" / "train_dit")
    classes = [{"name": name, "factors": {}} for name in ("red star", "blue ring", "green moon", "white heart", "pink cross")]
    artifacts.save_json(folder / "data" / "prepare" / "classes.json", classes)
    channels = tokenizer.options.encoder.latent_channels
    save_statistics(folder / "data" / "train_dit", torch.zeros(channels), torch.ones(channels))
    ramp = np.linspace(0, 255, 50 * 80 * 3).reshape(50, 80, 3).astype(np.uint8)
    Image.fromarray(ramp).save(folder / "wide.png")
    Image.fromarray(ramp[:, :, 0]).save(folder / "grey.jpg")
    return folder


@pytest.fixture
def vtp(project, monkeypatch):
    """Runs a command in the project; its output."""
    monkeypatch.setattr(program, "ROOT", project)
    monkeypatch.chdir(project)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(program.main, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


def test_inspect_counts_parameters_and_shows_options(vtp, project):
    said = vtp("inspect", str(project / "data" / "finetune_decoder"))
    tokenizer = VisualTokenizer.from_pretrained(project / "data" / "finetune_decoder")
    assert "encoder parameters" in said
    assert f"{sum(p.numel() for p in tokenizer.encoder.parameters()):,}" in said
    assert "vision_patch_size" in said
    assert "open_vtp.rope" in said
    assert "diffusion transformer for 5 classes" in vtp("inspect", str(project / "data" / "train_dit"))


def test_reconstruct_writes_a_sheet_and_the_psnr_of_each(vtp, project):
    said = vtp("reconstruct", "wide.png", "grey.jpg", "--tokenizer", str(project / "data" / "finetune_decoder"), "--out", "a.png")
    assert said.count(" dB") == 2
    with Image.open(project / "a.png") as sheet:
        assert sheet.width > 64


@pytest.mark.parametrize("command", ["reconstruct wide.png", "generate", "export-dit"])
def test_a_folder_is_never_taken_for_a_file_to_write(vtp, project, command):
    assert "is a directory" in vtp(*command.split(), "--out", str(project / "data"))
    assert (project / "data" / "finetune_decoder" / "config.json").is_file()


def test_where_nothing_can_be_written_is_one_line(vtp, project, monkeypatch, capsys):
    (project / "note").write_text("x")
    tokenizer = ["--tokenizer", str(project / "data" / "finetune_decoder")]
    monkeypatch.setattr(sys, "argv", ["vtp", "reconstruct", "wide.png", *tokenizer, "--out", "note/a.png"])
    with pytest.raises(SystemExit) as caught:
        program.command()
    assert re.fullmatch(r"vtp: note(/a\.png)?: (Not a directory|File exists); mend this, or name .*", str(caught.value))


def test_psnr_is_that_of_the_decoded_picture(project):
    tokenizer = VisualTokenizer.from_pretrained(project / "data" / "finetune_decoder")
    pixels = use.read_pictures([project / "wide.png"], 32)
    back, ratio = use.reconstructed(tokenizer, pixels)
    assert ratio.item() == pytest.approx(-10 * (back - pixels).square().mean().log10().item(), abs=1e-3)


def test_classify_gives_each_name_a_share(vtp, project):
    tokenizer = VisualTokenizer.from_pretrained(project / "data" / "finetune_decoder")
    pixels = use.read_pictures([project / "wide.png", project / "grey.jpg"], 32)
    shares = use.classified(tokenizer, pixels, ["a star", "a ring"], ["{}", "one {}"])
    assert shares.shape == (2, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    said = vtp("classify", "wide.png", "--labels", "a star, a ring", "--tokenizer", str(project / "data" / "finetune_decoder"))
    assert "a star 0." in said
    with pytest.raises(ConfigError, match="names nothing"):
        vtp("classify", "wide.png", "--labels", " , ", "--tokenizer", str(project / "data" / "finetune_decoder"))


@pytest.mark.parametrize("command", ["inspect", "reconstruct wide.png --tokenizer", "classify wide.png --tokenizer"])
def test_where_nothing_was_trained_yet_the_command_that_trains_is_named(vtp, project, monkeypatch, command):
    monkeypatch.setattr(program, "TOKENIZER", str(project / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere is missing; `dvc repro finetune_decoder` makes it"):
        vtp(*command.split(), str(project / "nowhere"))


def test_quarantine_asks_for_prepared_data(vtp):
    with pytest.raises(ValueError, match=r"quarantine\.parquet is missing; `dvc repro prepare` makes it"):
        vtp("quarantine")


def test_generate_is_the_same_for_the_same_seed(vtp, project):
    for name in ("a", "b"):
        assert f"wrote {name}.png" in vtp("generate", "--label", "blue ring", "--count", "2", "--out", f"{name}.png")
    assert (project / "a.png").read_bytes() == (project / "b.png").read_bytes()
    vtp("generate", "--label", "1", "--count", "2", "--seed", "1", "--out", "c.png")
    assert (project / "a.png").read_bytes() != (project / "c.png").read_bytes()
    pictures = use.generated(project / "data", [1, 1, 2], load().sample, 0)
    assert pictures.dtype == torch.uint8
    assert pictures.shape[:2] == (3, 3)


def test_without_a_label_the_sheet_goes_over_all_classes(vtp, project, monkeypatch):
    asked = []
    monkeypatch.setattr(
        use, "generated", lambda data, numbers, params, seed: asked.append(numbers) or torch.zeros(10, 3, 32, 32).byte()
    )
    vtp("generate", "--count", "10")
    assert asked == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
    assert (project / "generated.png").is_file()


def test_without_labels_the_classes_of_the_data_are_chosen_from(vtp, project, monkeypatch):
    folder = ("--tokenizer", str(project / "data" / "finetune_decoder"))
    said = vtp("classify", "wide.png", *folder)
    assert sum(name in said for name in ("red star", "blue ring", "green moon", "white heart", "pink cross")) == 5
    monkeypatch.setattr(program, "ROOT", project / "elsewhere")
    with pytest.raises(ConfigError, match=r"classes\.json is missing.*--labels"):
        vtp("classify", "wide.png", *folder)


def test_a_folder_in_the_published_layout_is_used_the_same_way(vtp, project):
    oracle = str(Path(__file__).parent / "oracles" / "vtp_a")
    said = vtp("inspect", oracle)
    assert "visual tokenizer f16d16" in said
    assert "16 x 4 x 4 of a picture of 64 x 64 pixels" in said
    assert "77 ids of 512" in said
    assert " dB" in vtp("reconstruct", "wide.png", "--tokenizer", oracle, "--out", "b.png")
    with pytest.raises(ValueError, match="knows 512 caption ids, CLIP's vocabulary has 49408, so it cannot classify by words"):
        vtp("classify", "wide.png", "--labels", "a,b", "--tokenizer", oracle)


def test_a_folder_of_diffusers_is_used_the_same_way_and_knows_no_words(vtp, project):
    from tests.tasks.test_variational import variational

    variational().tokenizer.save_pretrained(project / "classic")
    said = vtp("inspect", "classic")
    assert "convolutional tokenizer f8d8" in said
    assert "8 x 4 x 4 of a picture of 32 x 32 pixels" in said
    assert "block_out_channels" in said
    assert " dB" in vtp("reconstruct", "wide.png", "--tokenizer", "classic", "--out", "classic.png")
    with pytest.raises(ValueError, match="is convolutional and has no text tower, so it cannot classify by words"):
        vtp("classify", "wide.png", "--labels", "a,b", "--tokenizer", "classic")


def test_the_tokenizer_is_given_away_with_what_was_measured_of_it(vtp, project):
    folder = project / "data" / "finetune_decoder"
    artifacts.write_manifest(folder, {"stage": "finetune_decoder", "given": False})
    evaluated = {"evaluated": artifacts.digest(folder / artifacts.MANIFEST)}
    artifacts.save_json(project / "data" / "evaluate_tokenizer" / artifacts.MANIFEST, evaluated)
    artifacts.save_json(project / "reports" / "tokenizer.json", {"psnr": 21.5, "psnr_before_gan": 20.0, "zero_shot_top1": None})
    assert "wrote away" in vtp("export-tokenizer", "--out", "away")
    card = (project / "away" / "README.md").read_text()
    assert "| held-out pictures: psnr | 21.5 |" in card
    assert "license: apache-2.0" in card
    assert "before_gan" not in card
    weights = [path / "model.safetensors" for path in (folder, project / "away")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    artifacts.write_manifest(folder, {"stage": "finetune_decoder", "given": True})  # another tokenizer since
    with pytest.raises(ValueError, match="evaluation is of another tokenizer"):
        vtp("export-tokenizer", "--out", "again")
    (folder / artifacts.MANIFEST).unlink()


def test_an_unknown_class_gets_the_nearest_names():
    with pytest.raises(ValueError, match="no class 'red stra' among 2; near are red star"):
        use.class_number("red stra", [ClassInfo(name="red star", factors={}), ClassInfo(name="blue ring", factors={})])


def test_what_is_no_picture_is_named(vtp, project):
    (project / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            vtp("reconstruct", name, "--tokenizer", str(project / "data" / "finetune_decoder"))


def test_a_folder_without_a_model_is_named(vtp, project):
    with pytest.raises(ValueError, match=r"config\.json is missing, so this is the folder of neither"):
        vtp("inspect", str(project / "data" / "prepare"))


def test_a_published_checkpoint_comes_in_with_its_statistics_and_goes_out_again(vtp, project):
    ours, stats = (
        project / "data" / "train_dit",
        torch.load(project / "data" / "train_dit" / "latents_stats.pt", weights_only=True),
    )
    torch.save({"mean": stats["mean"] + 3, "std": stats["std"] * 2}, project / "stats.pt")
    said = vtp("export-dit", str(ours), "--out", "dit.pt")
    assert "wrote dit.pt; LightningDiT(input_size=" in said
    assert "none; it needs those of the latents" in vtp("inspect", "dit.pt")
    said = vtp("import-dit", "dit.pt", "--out", "imported", "--statistics", "stats.pt")
    assert "wrote imported: of a size of its own, 5 classes" in said
    assert (project / "imported" / "config.json").read_bytes() == (ours / "config.json").read_bytes()
    assert (project / "imported" / "model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    assert "its own" in vtp("inspect", "imported")
    mean, std = load_statistics(project / "imported")
    assert torch.equal(mean, stats["mean"] + 3)
    assert torch.equal(std, stats["std"] * 2)
    assert "without --statistics" in vtp("import-dit", "dit.pt", "--out", "bare")
    with pytest.raises(ConfigError, match="bare exists"):
        vtp("import-dit", "dit.pt", "--out", "bare")
    torch.save({"mean": torch.zeros(3), "std": torch.ones(3)}, project / "three.pt")
    with pytest.raises(ConfigError, match=r"three\.pt is for 3 channels"):
        vtp("import-dit", "dit.pt", "--out", "other", "--statistics", "three.pt")
    assert not (project / "other").exists()
