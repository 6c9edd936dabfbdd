from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.stub import DATA, ONE, pixels, png
from vtp.artifacts import read_manifest
from vtp.data import captions, contract
from vtp.data.prepare import prepare, quarantined
from vtp.data.sources.base import Row, key_of
from vtp.data.sources.imagefolder import ImageFolder, file_names


def source(folder: Path, **changes: object) -> ImageFolder:
    return ImageFolder(replace(DATA, source="imagefolder", path=str(folder), shard_samples=3, **changes))  # type: ignore[arg-type]


def rows_of(found: ImageFolder, split: str = "train") -> list[Row]:
    return [row for part in range(found.parts(split)) for row in found.rows(split, part)]


def by_key(found: ImageFolder, split: str = "train") -> dict[str | None, Row]:
    return {row.key: row for row in rows_of(found, split)}


def fill(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(pixels(i), "JPEG"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path, *(f"train/{name}/{i}.jpg" for name in ("dog", "cat", "a bird") for i in range(4)))
    fill(tmp_path, *(f"val/{name}/{i}.jpg" for name in ("dog", "cat", "a bird") for i in range(2)))
    return tmp_path


def test_class_folders_are_classes_in_the_order_of_their_names(folder: Path) -> None:
    found = source(folder)
    assert [entry.name for entry in found.classes] == ["a bird", "cat", "dog"]
    assert not found.captioned
    assert found.parts("train") == 4
    row = by_key(found)["dog_3"]
    assert row == Row("dog_3", (folder / "train/dog/3.jpg").read_bytes(), None, 2, None, file=str(folder / "train/dog/3.jpg"))
    assert sorted(row.label for row in rows_of(found, "validation") if row.label is not None) == [0, 0, 1, 1, 2, 2]


def test_a_text_that_belongs_to_no_picture_is_no_caption(folder: Path) -> None:
    (folder / "train" / "README.txt").write_text("Photographs of animals.")
    (folder / "train" / "dog" / "dog_boxes.txt").write_text("0 0 64 64")
    assert not source(folder).captioned
    (folder / "train" / "dog" / "0.txt").write_text("a dog")
    assert source(folder).captioned


def test_a_part_is_no_run_of_one_class_and_the_same_at_every_call(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(30)), "val/a/0.png")
    found, again = source(tmp_path), source(tmp_path)
    parts = [[row.key for row in found.rows("train", part)] for part in range(20)]
    assert parts == [[row.key for row in again.rows("train", part)] for part in range(20)]
    assert sum(len({str(key)[0] for key in part}) == 2 for part in parts) > 10


def test_files_that_are_no_pictures_by_name_are_told_and_hidden_ones_are_not(folder: Path) -> None:
    (folder / "train/dog/Thumbs.db").write_text("x")
    (folder / "train/dog/.DS_Store").write_text("x")
    (folder / "train/.cache").mkdir()
    (folder / "train/.cache/1.jpg").write_text("x")
    faults = [row for row in rows_of(source(folder)) if row.fault]
    assert [(row.key, row.fault) for row in faults] == [("dog_Thumbs", "file name is not that of a picture")]
    assert str(faults[0].file).endswith("Thumbs.db")


def test_a_text_beside_a_picture_is_its_caption(folder: Path) -> None:
    (folder / "train/dog/1.txt").write_text("ein Hund \n", encoding="utf-8")
    found = source(folder)
    assert found.captioned
    assert by_key(found)["dog_1"].caption == "ein Hund \n"
    assert by_key(found)["dog_2"].caption is None
    assert len(rows_of(found)) == 12


def test_a_folder_without_classes_has_no_labels_and_validation_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{i}.jpg" for i in range(8)))
    with pytest.raises(ValueError, match=r"holds no validation data; give data.validation_path, or hold some out"):
        source(tmp_path)
    found = source(tmp_path, validation_samples=2)
    assert found.classes == []
    keys = [{row.key for row in rows_of(found, split)} for split in ("train", "validation")]
    assert [len(one) for one in keys] == [6, 2]
    assert not keys[0] & keys[1]
    assert all(row.label is None and row.fault is None for row in rows_of(found))
    fill(tmp_path, "cat/1.jpg")
    with pytest.raises(ValueError, match="holds pictures beside the class folder cat"):
        source(tmp_path, validation_samples=2)


def test_a_single_class_counts_as_no_label(tmp_path: Path) -> None:
    """Its probe and zero-shot accuracy would be 1, and a metric network would learn nothing."""
    fill(tmp_path, *(f"train/dog/{i}.jpg" for i in range(6)), *(f"val/dog/{i}.jpg" for i in range(2)))
    prepare(tmp_path / "p", replace(DATA, source="imagefolder", path=str(tmp_path)), 0, ONE)
    about = read_manifest(tmp_path / "p")
    assert (about["labelled"], about["num_classes"]) == (False, 1)


def test_a_validation_class_that_training_lacks_is_put_aside(folder: Path) -> None:
    fill(folder, "val/emu/0.jpg")
    row = by_key(source(folder), "validation")["emu_0"]
    assert row.fault == "folder or label is not that of a training class"


def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "ILSVRC"
    fill(root, *(f"Data/CLS-LOC/train/{wnid}/{wnid}_{i}.JPEG" for wnid in ("n01440764", "n01443537") for i in range(3)))
    fill(root, *(f"Data/CLS-LOC/val/ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 3)))
    lines = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n"
    (root / "LOC_synset_mapping.txt").write_text(lines)
    return root


def kaggle(root: Path) -> Path:
    file = root / "LOC_val_solution.csv"
    file.write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000003,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n01440764 0 1 2 3 \nILSVRC2012_val_00000002,n01484850 0 1 2 3\n"
    )
    return file


def devkit(root: Path) -> Path:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(1, "n01443537", "goldfish"), (2, "n01440764", "tench"), (3, "n01484850", "shark")]
    savemat(root / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    file = root / "ILSVRC2012_validation_ground_truth.txt"
    file.write_text("2\n3\n1\n")
    return file


def plain(root: Path) -> Path:
    file = root / "val.txt"
    file.write_text("ILSVRC2012_val_00000001.JPEG 0\nILSVRC2012_val_00000002.JPEG 7\nILSVRC2012_val_00000003.JPEG 1\n")
    return file


@pytest.mark.parametrize("labels", [kaggle, devkit, plain])
def test_imagenet_is_read_as_it_is_distributed(tmp_path: Path, labels: Callable[[Path], Path]) -> None:
    root = imagenet(tmp_path)
    found = source(
        root / "Data" / "CLS-LOC",
        class_names=str(root / "LOC_synset_mapping.txt"),
        validation_labels=str(labels(root)),
    )
    assert [entry.name for entry in found.classes] == ["tench", "goldfish"]
    rows = by_key(found, "validation")
    assert [(rows[f"ILSVRC2012_val_{i:08d}"].label, rows[f"ILSVRC2012_val_{i:08d}"].fault) for i in (1, 2, 3)] == [
        (0, None),
        (None, "folder or label is not that of a training class"),
        (1, None),
    ]


def test_links_are_followed_but_not_round_in_a_circle(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/a/0.jpg", "root/b/1.jpg")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "root" / "b" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere" / "a" / "here").symlink_to(tmp_path / "elsewhere" / "a")
    assert sorted(file_names(tmp_path / "root")) == ["a/0.jpg", "b/1.jpg"]
    (tmp_path / "elsewhere" / "a" / "b").symlink_to(tmp_path / "root" / "b")  # which leads back to a, next
    (tmp_path / "root" / "b" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    assert sorted(file_names(tmp_path / "root")) == ["a/0.jpg", "a/b/1.jpg", "b/1.jpg", "b/a/0.jpg"]


def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    """As archives from before UTF-8 unpack."""
    fill(tmp_path, "train/dog/0.jpg", "train/dog/1.jpg", "val/dog/0.jpg")
    try:
        (tmp_path / os.fsdecode(b"train/caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    fill(tmp_path, os.fsdecode(b"train/caf\xe9/\xff.jpg"), os.fsdecode(b"train/dog/\xfe.docx"))
    found = source(tmp_path)
    assert [entry.name for entry in found.classes] == ["caf\\xe9", "dog"]
    rows = {row.file: row for row in rows_of(found)}
    assert rows[f"{tmp_path}/train/caf\\xe9/\\xff.jpg"].image == (tmp_path / os.fsdecode(b"train/caf\xe9/\xff.jpg")).read_bytes()
    assert rows[f"{tmp_path}/train/dog/\\xfe.docx"].fault == "file name is not that of a picture"
    prepare(tmp_path / "p", replace(DATA, source="imagefolder", path=str(tmp_path)), 0, ONE)
    counts, first = quarantined(tmp_path / "p", 9)
    assert counts == {("train", "file name is not that of a picture"): 1}
    assert first[0]["file"] == f"{tmp_path}/train/dog/\\xfe.docx"


def test_folders_called_by_numbers_are_meant_by_their_names(tmp_path: Path) -> None:
    """In the order of names, folder 10 has label 1 and folder 2 has label 2."""
    fill(tmp_path, *(f"train/{folder}/{i}.jpg" for folder in ("0", "2", "10") for i in range(2)))
    fill(tmp_path, "val/a.jpg", "val/b.jpg", "val/c.jpg")
    file = tmp_path / "val.txt"
    file.write_text("a 2\nb 10\nc 1\n")
    found = source(tmp_path, validation_labels=str(file))
    assert [entry.name for entry in found.classes] == ["0", "10", "2"]
    rows = by_key(found, "validation")
    assert [rows[key].label for key in "abc"] == [2, 1, None]


def test_names_that_do_not_fit_the_folders_are_an_error(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    few = tmp_path / "few.txt"
    few.write_text("n01440764 tench\n")
    with pytest.raises(ValueError, match=r"few.txt has no line `n01443537 its name`"):
        source(root / "Data/CLS-LOC", class_names=str(few), validation_labels=str(kaggle(root)))
    with pytest.raises(ValueError, match="imagenet names 1000 classes, but there are 2 class folders"):
        source(root / "Data/CLS-LOC", class_names="imagenet", validation_labels=str(kaggle(root)))
    with pytest.raises(ValueError, match=r"data\.class_names=.*nowhere.txt does not exist"):
        source(root / "Data/CLS-LOC", class_names=str(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match=r"data\.validation_labels=.*nowhere.txt does not exist"):
        source(root / "Data/CLS-LOC", validation_labels=str(tmp_path / "nowhere.txt"))
    few.write_bytes("n01440764 tench\nn01443537 café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"few.txt is not in UTF-8 \(invalid continuation byte at byte 29\); save it as such"):
        source(root / "Data/CLS-LOC", class_names=str(few), validation_labels=str(kaggle(root)))
    few.write_text("\ufeffn01440764 tench\nn01443537 goldfish\n", encoding="utf-8")  # as Windows' editors begin a file
    named = source(root / "Data/CLS-LOC", class_names=str(few), validation_labels=str(kaggle(root)))
    assert [entry.name for entry in named.classes] == ["tench", "goldfish"]
    with pytest.raises(ValueError, match=r"meta.mat is missing"):
        source(root / "Data/CLS-LOC", validation_labels=str(plain_numbers(root)))
    with pytest.raises(ValueError, match="is no folder"):
        source(tmp_path / "nowhere")


def plain_numbers(root: Path) -> Path:
    file = root / "numbers.txt"
    file.write_text("1\n2\n1\n")
    return file


def test_names_and_templates_of_imagenet_are_open_clips() -> None:
    names = captions.imagenet_names()
    assert (len(names), names[0], names[1], names[999]) == (1000, "tench", "goldfish", "toilet paper")
    templates = captions.expand_templates(["{}", "imagenet"])
    assert len(templates) == 81
    assert templates[:2] == ("{}", "a bad photo of a {}.")
    assert all(template.count("{}") == 1 for template in templates)


def test_keys_keep_to_the_contract_and_differ_where_names_do() -> None:
    assert key_of("n01440764/n01440764_10026") == "n01440764_n01440764_10026"
    assert key_of("./000012") == "000012"
    odd = ["a b/1", "a-b/1", "a.b/1", "ü/1", "x" * 95, "x" * 96, "猫/1", ""]
    keys = [key_of(name) for name in odd]
    assert all(re.fullmatch(contract.KEY, key) for key in keys)
    assert len(set(keys)) == len(odd)
