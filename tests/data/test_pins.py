from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.stub import DATA
from vtp.config import ROOT
from vtp.data.pins import SCENES_VERSION, check, check_tokenizer, pin, verify, write_pin, write_tokenizer_pin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    (path / "deep").mkdir(parents=True)
    (path / "b.parquet").write_text("bb")
    (path / "a.parquet").write_text("a")
    (path / "deep" / "c.parquet").write_text("ccc")
    (path / ".cache").write_text("not data")
    return path


def test_pin_lists_files_in_order_with_sizes_and_checksums(folder: Path) -> None:
    files = pin(folder)["files"]
    assert list(files) == ["a.parquet", "b.parquet", "deep/c.parquet"]
    assert files["a.parquet"] == {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}
    verify(folder, pin(folder))
    (folder / ".cache").write_text("changed, and still not data")
    verify(folder, pin(folder))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.parquet", None, "b.parquet is missing"),
        ("d.parquet", "d", "d.parquet was added"),
        ("b.parquet", "bbb", "b.parquet has another size"),
        ("b.parquet", "bB", "b.parquet has other contents"),
    ],
)
def test_each_change_is_named_with_the_command_that_accepts_it(folder: Path, name: str, text: str | None, message: str) -> None:
    pinned = pin(folder)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message + r".*`python -m vtp pin`"):
        verify(folder, pinned)


def test_many_changes_are_counted(folder: Path) -> None:
    pinned = pin(folder)
    for i in range(5):
        (folder / f"new{i}").write_text("x")
    with pytest.raises(ValueError, match=r"new0 was added, new1 was added, new2 was added and 2 more"):
        verify(folder, pinned)


def test_a_source_is_held_against_its_written_pin(folder: Path, tmp_path: Path) -> None:
    data, inputs = replace(DATA, path=str(folder)), tmp_path / "inputs"
    with pytest.raises(ValueError, match=r"parquet.json does not exist; `python -m vtp pin`"):
        check(data, inputs)
    file = write_pin(data, inputs)
    assert file == inputs / "parquet.json"
    assert json.loads(file.read_text())["source"] == "parquet"
    check(data, inputs)
    (folder / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"a\.parquet is missing"):
        check(data, inputs)


def test_scenes_are_pinned_by_version(tmp_path: Path) -> None:
    data = replace(DATA, source="scenes")
    file = write_pin(data, tmp_path)
    assert json.loads(file.read_text()) == {"source": "scenes", "version": SCENES_VERSION}
    check(data, tmp_path)
    file.write_text('{"source": "scenes", "version": 0}')
    with pytest.raises(ValueError, match=f"pins scenes 0, not {SCENES_VERSION}"):
        check(data, tmp_path)


def test_nothing_to_pin_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder with files in it"):
        pin(tmp_path / "nowhere")


def test_a_tokenizer_is_pinned_by_the_files_it_is_read_from(tmp_path: Path) -> None:
    given, inputs, names = tmp_path / "given", tmp_path / "inputs", ("config.json", "model.safetensors", "vtp_extra.safetensors")
    given.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (given / name).write_text(name)
    file = write_tokenizer_pin(None, names, inputs)
    assert json.loads(file.read_text()) == {"path": None, "files": {}}
    with pytest.raises(ValueError, match=r"pins no tokenizer, not .*given; run `python -m vtp pin`"):
        check_tokenizer(given, names, inputs)
    assert list(json.loads(write_tokenizer_pin(given, names, inputs).read_text())["files"]) == [
        "config.json",
        "model.safetensors",
    ]
    (given / "README.md").write_text("another text")
    check_tokenizer(given, names, inputs)
    for name, text, message in (
        ("vtp_extra.safetensors", "x", "was added"),
        ("model.safetensors", "x", "has another size"),
        ("config.json", "CONFIG.json", "has other contents"),
    ):
        write_tokenizer_pin(given, names, inputs)
        (given / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            check_tokenizer(given, names, inputs)


def test_this_project_pins_no_tokenizer_of_its_own() -> None:
    assert json.loads((ROOT / "data" / "inputs" / "tokenizer.json").read_text()) == {"path": None, "files": {}}
