from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtp.config import ROOT
from vtp.data.pins import check_given, write_given_pin


def test_a_tokenizer_is_pinned_by_the_files_it_is_read_from(tmp_path: Path) -> None:
    given, inputs, names = tmp_path / "given", tmp_path / "inputs", ("config.json", "model.safetensors", "vtp_extra.safetensors")
    given.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (given / name).write_text(name)
    file = write_given_pin("tokenizer", None, names, inputs)
    assert json.loads(file.read_text()) == {"path": None, "files": {}}
    with pytest.raises(ValueError, match=r"pins no tokenizer, not .*given; run `python -m vtp pin`"):
        check_given("tokenizer", given, names, inputs)
    assert list(json.loads(write_given_pin("tokenizer", given, names, inputs).read_text())["files"]) == [
        "config.json",
        "model.safetensors",
    ]
    (given / "README.md").write_text("another text")
    check_given("tokenizer", given, names, inputs)
    for name, text, message in (
        ("vtp_extra.safetensors", "x", "was added"),
        ("model.safetensors", "x", "has another size"),
        ("config.json", "CONFIG.json", "has other contents"),
    ):
        write_given_pin("tokenizer", given, names, inputs)
        (given / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            check_given("tokenizer", given, names, inputs)


def test_one_file_is_pinned_alone(tmp_path: Path) -> None:
    (tmp_path / "dit.pt").write_text("weights")
    (tmp_path / "other.pt").write_text("others")
    write_given_pin("dit", tmp_path / "dit.pt", ("config.json",), tmp_path / "inputs")
    check_given("dit", tmp_path / "dit.pt", ("config.json",), tmp_path / "inputs")
    (tmp_path / "dit.pt").write_text("WEIGHTS")
    with pytest.raises(ValueError, match=r"dit\.pt has other contents"):
        check_given("dit", tmp_path / "dit.pt", ("config.json",), tmp_path / "inputs")


def test_a_folder_is_pinned_with_all_it_holds(tmp_path: Path) -> None:
    (tmp_path / "latents" / "deep").mkdir(parents=True)
    (tmp_path / "latents" / ".cache").mkdir()
    for name in ("b", "a", "deep/c", ".hidden", ".cache/e"):
        (tmp_path / "latents" / name).write_text(name)
    file = write_given_pin("latents", tmp_path / "latents", None, tmp_path / "inputs")
    assert list(json.loads(file.read_text())["files"]) == ["a", "b", "deep/c"]
    (tmp_path / "latents" / "d").write_text("d")
    with pytest.raises(ValueError, match="d was added"):
        check_given("latents", tmp_path / "latents", None, tmp_path / "inputs")
    with pytest.raises(ValueError, match="nowhere is no file and no folder with files in it"):
        write_given_pin("latents", tmp_path / "nowhere", None, tmp_path / "inputs")


@pytest.mark.parametrize("what", ["tokenizer", "latents", "dit"])
def test_this_project_is_given_nothing(what: str) -> None:
    assert json.loads((ROOT / "data" / "inputs" / f"{what}.json").read_text()) == {"path": None, "files": {}}
