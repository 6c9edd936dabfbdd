from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tests.data.stub import DATA
from vtp.config import ROOT, DataParams
from vtp.data.source_pins import SCENES_VERSION, check, check_there, pin, read_pin, write_pin

SHA_A = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@pytest.fixture
def data(tmp_path: Path) -> DataParams:
    folder = tmp_path / "outside"
    folder.mkdir()
    for name, text in (("train-1.parquet", "bb"), ("train-0.parquet", "a"), ("val-0.parquet", "ccc"), ("README.md", "not read")):
        (folder / name).write_text(text)
    return replace(DATA, path=str(folder))


def images(tmp_path: Path) -> DataParams:
    for name in ("train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg", "val/a/0.jpg", "train/a/.DS_Store"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return replace(DATA, source="imagefolder", path=str(tmp_path / "images"))


def test_what_is_read_is_listed_in_order_with_sizes_and_checksums(data: DataParams) -> None:
    files = pin(data)["files"]
    assert list(files) == ["train/train-0.parquet", "train/train-1.parquet", "validation/val-0.parquet"]
    assert files["train/train-0.parquet"] == {"bytes": 1, "sha256": SHA_A}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train-1.parquet", None, "train/train-1.parquet is missing"),
        ("train-2.parquet", "d", "train/train-2.parquet was added"),
        ("val-0.parquet", "bbbb", "validation/val-0.parquet has another size"),
        ("train-1.parquet", "bB", "train/train-1.parquet has other contents"),
    ],
)
def test_each_change_is_named_with_the_command_that_accepts_it(
    data: DataParams, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    write_pin(data, tmp_path)
    check(data, tmp_path)
    file = Path(str(data.path)) / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(ValueError, match=message + r".*`python -m vtp pin`"):
        check(data, tmp_path)


def test_many_changes_are_counted(data: DataParams, tmp_path: Path) -> None:
    write_pin(data, tmp_path)
    for i in range(3, 8):
        (Path(str(data.path)) / f"train-{i}.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"train-3.parquet was added, .*train-5.parquet was added and 2 more"):
        check(data, tmp_path)


def test_a_source_needs_a_pin(data: DataParams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parquet.json does not exist; `python -m vtp pin`"):
        check(data, tmp_path / "inputs")
    file = write_pin(data, tmp_path / "inputs")
    assert file == tmp_path / "inputs" / "parquet.json"
    assert json.loads(file.read_text())["source"] == "parquet"
    assert str(tmp_path) not in file.read_text()


@pytest.mark.parametrize("source", ["imagefolder", "parquet", "webdataset"])
def test_every_source_has_an_empty_pin_that_says_how_to_fill_it(source: str) -> None:
    inputs, nothing = ROOT / "data" / "inputs", f"{source}.json pins nothing yet; `python -m vtp pin data.source={source} "
    for path, quoted in (("/here", "data.path=/here`"), ("/my pictures", "\"data.path='/my pictures'\"`")):
        with pytest.raises(ValueError, match=re.escape(nothing + quoted)):
            read_pin(replace(DATA, source=source, path=path), inputs)


def test_what_is_not_there_is_seen_before_anything_is_read(data: DataParams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parquet\.json does not exist"):
        check_there(data, tmp_path)
    write_pin(data, tmp_path)
    check_there(data, tmp_path)
    with pytest.raises(ValueError, match="/nowhere is no folder"):
        check_there(replace(data, path="/nowhere"), tmp_path)


def test_folders_of_pictures_are_pinned_one_by_one(tmp_path: Path) -> None:
    data = images(tmp_path)
    folders = pin(data)["folders"]
    assert {name: (mark["files"], mark["bytes"]) for name, mark in folders.items()} == {
        "train/a": (2, 26),
        "train/b": (1, 13),
        "validation/a": (1, 11),
    }
    write_pin(data, tmp_path)
    check(data, tmp_path)
    file = tmp_path / "images/train/a/1.jpg"
    file.rename(tmp_path / "images/train/a/2.jpg")
    with pytest.raises(ValueError, match="train/a has other contents"):
        check(data, tmp_path)
    (tmp_path / "images/train/a/2.jpg").unlink()
    with pytest.raises(ValueError, match="train/a has another size"):
        check(data, tmp_path)


def test_files_beside_the_pictures_are_pinned_too(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a first\nb second\n")
    data = replace(images(tmp_path), class_names=str(names))
    write_pin(data, tmp_path)
    names.write_text("a first\nb third!\n")
    with pytest.raises(ValueError, match="class_names has other contents"):
        check(data, tmp_path)
    assert "class_names" not in pin(replace(data, class_names="imagenet"))["folders"]


def test_pictures_that_links_lead_to_are_pinned_as_they_are_read(tmp_path: Path) -> None:
    data = images(tmp_path)
    train = tmp_path / "images" / "train"
    (train / "a").rename(tmp_path / "elsewhere")
    (train / "a").symlink_to(tmp_path / "elsewhere")
    assert list(pin(data)["folders"]) == ["train/a", "train/b", "validation/a"]
    write_pin(data, tmp_path)
    (tmp_path / "elsewhere" / "2.jpg").write_text("new")
    with pytest.raises(ValueError, match="train/a has another size"):
        check(data, tmp_path)


def test_what_the_numbers_of_labels_mean_is_pinned_too(tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_text("1 is a")
    (tmp_path / "truth.txt").write_text("1\n")
    data = replace(images(tmp_path), validation_labels=str(tmp_path / "truth.txt"))
    write_pin(data, tmp_path)
    (tmp_path / "meta.mat").write_text("1 is b")
    with pytest.raises(ValueError, match="validation_labels has other contents"):
        check(data, tmp_path)


def test_tars_elsewhere_are_pinned_by_their_servers_mark(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for i in range(3):
        system.pipe(f"/bucket/{i}.tar", b"tar %d" % i)
    places = {"path": "memory://bucket/{0..1}.tar", "validation_path": "memory://bucket/2.tar"}
    data = replace(DATA, source="webdataset", **places)  # type: ignore[arg-type]
    assert list(pin(data)["files"]) == ["train/0.tar", "train/1.tar", "validation/2.tar"]
    assert pin(data)["files"]["train/1.tar"]["bytes"] == 5
    write_pin(data, tmp_path)
    check(data, tmp_path)
    system.pipe("/bucket/1.tar", b"tar x")
    with pytest.raises(ValueError, match=r"train/1.tar has other contents"):
        check(data, tmp_path)
    system.rm("/bucket/1.tar")
    with pytest.raises(ValueError, match=r"bucket/1.tar does not exist; bring it back"):
        check(data, tmp_path)


def test_tars_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/0.tar", "b/0.tar", "c/1.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    data = replace(DATA, source="webdataset", path=str(tmp_path / "{a,b}" / "0.tar"), validation_path=str(tmp_path / "c"))
    assert len(pin(data)["files"]) == 3


def test_scenes_are_pinned_by_version(tmp_path: Path) -> None:
    data = replace(DATA, source="scenes")
    file = write_pin(data, tmp_path)
    assert json.loads(file.read_text()) == {"source": "scenes", "version": SCENES_VERSION}
    check(data, tmp_path)
    file.write_text('{"source": "scenes", "version": 0}')
    with pytest.raises(ValueError, match=f"pins scenes 0, not {SCENES_VERSION}"):
        check(data, tmp_path)


def test_nothing_to_pin_is_an_error(data: DataParams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        pin(replace(data, path=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no train-"):
        pin(replace(data, path=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match="empty holds no files"):
        pin(replace(data, source="imagefolder", path=str(tmp_path / "empty")))
