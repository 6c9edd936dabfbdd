"""Files are whole or absent, and what was changed behind our back is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from vtp import artifacts
from vtp.artifacts import BrokenArtifact


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    artifacts.save_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.save_json(path, {"a": float("nan")})
    assert artifacts.load_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing(tmp_path):

    def fail() -> None:
        with artifacts.folder_aside(tmp_path / "out") as folder:
            (folder / "part").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not"),
        (lambda path: path.write_bytes(b"\x00" + path.read_bytes()[1:]), "sha256 differs"),
    ],
)
def test_a_manifest_notices_what_happened_to_its_files(tmp_path, harm, words):
    artifacts.save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(3)})
    artifacts.write_manifest(tmp_path, {"stage": "x"})
    assert artifacts.read_manifest(tmp_path)["stage"] == "x"
    harm(tmp_path / "t.safetensors")
    with pytest.raises(BrokenArtifact, match=words):
        artifacts.read_manifest(tmp_path)


def test_tensors_are_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from vtp.artifacts import save_tensors;"
        "save_tensors(Path(sys.argv[1]), {'b': torch.ones(2), 'a': torch.zeros(3)}, ('format', 'pt'))"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_digest_sees_names_shapes_and_bits():
    base = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    first = artifacts.tensors_digest(base)
    assert artifacts.tensors_digest(dict(reversed(base.items()))) == first
    assert artifacts.tensors_digest({**base, "a": torch.zeros(3, 2)}) != first
    assert artifacts.tensors_digest({**base, "b": torch.tensor(1.0 + 1e-7)}) != first
    assert artifacts.tensors_digest({"c": base["a"], "b": base["b"]}) != first


def test_what_a_killed_process_of_the_same_number_left_is_no_hindrance(tmp_path):
    left = tmp_path / f".out.{os.getpid()}"
    left.mkdir()
    (left / "half").write_text("x")
    with artifacts.folder_aside(tmp_path / "out") as folder:
        (folder / "whole").write_text("y")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
    assert not left.exists()


def test_a_link_to_a_folder_is_replaced_and_what_it_led_to_stays(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "large disk" / "old").write_text("x")
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    with artifacts.folder_aside(tmp_path / "out") as folder:
        (folder / "new").write_text("y")
    assert not (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "large disk").iterdir()] == ["old"]


@pytest.mark.trap
def test_a_file_takes_no_folder_away_and_a_folder_no_file(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("precious")
    (tmp_path / "thesis").write_text("precious")
    with (
        pytest.raises(IsADirectoryError, match="a folder is where a file is to be written"),
        artifacts.aside(tmp_path / "photos"),
    ):
        raise AssertionError("work was done before it was refused")
    with pytest.raises(NotADirectoryError), artifacts.folder_aside(tmp_path / "thesis"):
        raise AssertionError("work was done before it was refused")
    assert (tmp_path / "photos" / "one.jpg").read_text() == (tmp_path / "thesis").read_text() == "precious"


@pytest.mark.trap
def test_a_name_never_comes_to_the_disk_before_its_content(tmp_path, settled):
    """Otherwise a power cut leaves an empty file of that name."""
    artifacts.save_json(tmp_path / "x.json", {"a": 1})
    assert settled == [tmp_path / "x.json"]
