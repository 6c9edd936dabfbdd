"""Real data in all its forms, good and bad, through the whole of `prepare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.data import forms, poison
from tests.data.stub import DATA, ONE, pixels, png
from vtp.artifacts import load_json, read_manifest
from vtp.config_data import DataParams, WebDatasetMembers
from vtp.data.captions import MOST_CHARACTERS
from vtp.data.prepare import How, prepare, quarantined
from vtp.data.shards import Prepared, Scratch

NAMES = ["red star", "blue disc", "grey square"]


def photographs() -> list[forms.Sample]:
    found = []
    for split, count in (("train", 30), ("validation", 9)):
        for i in range(count):
            mode = "L" if i % 7 == 0 else "RGB"
            image = png(pixels(split == "train", 20, i, height=24 + i % 5, width=30), "JPEG", mode)
            found.append((split, f"{split}_{i:03d}", i % 3, f"{NAMES[i % 3]} number {i}, été 🐈", image))
    return found


def put_aside(folder: Path) -> dict[str, str]:
    """Key, or name of the file where there is none -> reason."""
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    return {row["key"] if row["key"] is not None else Path(row["file"]).name: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, DataParams]]:
    root = tmp_path_factory.mktemp("forms")
    base = replace(DATA, image_size=32, max_bad_fraction=0.0, shard_samples=11)
    values = forms.write_forms(photographs(), NAMES, root, per_tar=8)
    return root, {form: replace(base, **changes) for form, changes in values.items()}


def test_all_forms_of_the_same_pictures_hold_the_same(written: tuple[Path, dict[str, DataParams]], tmp_path: Path) -> None:
    found = {}
    for form, data in written[1].items():
        prepare(tmp_path / form, data, 0, ONE)
        read_manifest(tmp_path / form)
        found[form] = forms.contents(tmp_path / form)
    assert len(found["parquet"]) == 39
    assert {key for split, key, *_ in found["parquet"] if split == "validation"} == {
        f"c{i % 3:03d}_validation_{i:03d}" for i in range(9)
    }
    assert all(one == found["parquet"] for one in found.values())
    # What training sees of them does not depend on the form, either.
    batches = []
    for form in ("tars copied", "tars indexed"):
        split = Prepared.open(tmp_path / form).train
        order = np.argsort([split.caption(i) for i in range(len(split))])
        batches.append(split.rows(torch.from_numpy(order)))
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in ("images", "tokens", "labels"))


def test_an_index_copies_no_picture_and_the_tars_stay_as_they_are(
    written: tuple[Path, dict[str, DataParams]], tmp_path: Path
) -> None:
    root, data = written
    before = {path: path.read_bytes() for path in (root / "tars").iterdir()}
    prepare(tmp_path / "p", data["tars indexed"], 0, How(workers=2))
    prepare(tmp_path / "q", data["tars indexed"], 0, ONE)
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "q").iterdir()
    }
    assert not list((tmp_path / "p").glob("*.tar"))
    assert {path: path.read_bytes() for path in (root / "tars").iterdir()} == before
    assert load_json(tmp_path / "p" / "train.shards.json")[1] == {
        "tar": str(root / "tars/train-00001.tar"),
        "samples": 8,
        "bytes": (root / "tars/train-00001.tar").stat().st_size,
    }
    assert load_json(tmp_path / "p" / "statistics.json")["channel_mean"] is None


def test_a_tar_that_disappears_after_prepare_is_named(written: tuple[Path, dict[str, DataParams]], tmp_path: Path) -> None:
    data = written[1]["tars indexed"]
    for path in (written[0] / "tars").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = replace(data, path=str(tmp_path / "train-*.tar"), validation_path=str(tmp_path / "val-*.tar"))
    prepare(tmp_path / "p", data, 0, ONE)
    split = Prepared.open(tmp_path / "p").train
    (tmp_path / "train-00002.tar").unlink()
    split.rows(torch.arange(16))
    with pytest.raises(ValueError, match=r"train-00002.tar is gone"):
        split.rows(torch.arange(16, 24))
    (tmp_path / "train-00003.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"train-00003.tar has not the \d+ bytes"):
        split.rows(torch.arange(24, 30))


def test_a_poisoned_folder_loses_what_is_broken_and_nothing_else(tmp_path: Path) -> None:
    expected = poison.poisoned_folder(tmp_path / "folder")
    data = replace(DATA, source="imagefolder", path=str(tmp_path / "folder"), image_size=32, shard_samples=16)
    facts = prepare(tmp_path / "p", data, 0, ONE)
    assert put_aside(tmp_path / "p") == expected
    prepared = Prepared.open(tmp_path / "p")
    assert len(prepared.train) == 80 + len(poison.unusual()) + len(poison.CAPTIONS)
    assert len(prepared.validation) == 20
    assert facts["train"]["broken_rows"] == len(expected) - 1
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "p" / "train.rows.parquet").to_pylist()}
    for name, caption in poison.CAPTIONS.items():
        assert rows[f"cat_said_{name}"]["caption"] == caption.strip()[:MOST_CHARACTERS].rstrip()
    images = prepared.train.rows(torch.arange(len(prepared.train)))["images"].float()
    assert (images.std((1, 2, 3)) > 10).all()  # none is black, or blank
    files = {Path(row["file"]).name for row in pq.read_table(tmp_path / "p" / "quarantine.parquet").to_pylist()}
    assert {"bad_bomb.png", "bad_cut.jpg", "notes.docx"} <= files
    counts, first = quarantined(tmp_path / "p", 3)
    assert counts["train", "image is cut"] == 3
    assert len(first) == 3


@pytest.mark.parametrize("mode", ["copy", "index", "deep"])
def test_poisoned_tars_lose_what_is_broken_and_nothing_else(tmp_path: Path, mode: str) -> None:
    expected = poison.poisoned_tars(tmp_path / "tars")
    data = replace(
        DATA,
        source="webdataset",
        path=str(tmp_path / "tars" / "train-*.tar"),
        validation_path=str(tmp_path / "tars" / "val-*.tar"),
        class_names=str(tmp_path / "tars" / "names.txt"),
        webdataset=WebDatasetMembers("txt", "cls"),
        image_size=32,
        mode="copy" if mode == "copy" else "index",
        deep_check=mode == "deep",
    )
    prepare(tmp_path / "p", data, 0, ONE)
    found = put_aside(tmp_path / "p")
    pixels_only = {f"bad_{name}" for name in ("cut_jpg", "half_zeros_jpg", "short_png")} if mode == "index" else set()
    assert set(found) == set(expected) - pixels_only
    assert all(reason.startswith(expected[key]) for key, reason in found.items())
    prepared = Prepared.open(tmp_path / "p", Scratch(tmp_path / "notes.txt", tmp_path / "cache", 0))
    good = 60 + 8 + len(pixels_only)
    assert (len(prepared.train), len(prepared.validation)) == (good, 12)
    assert prepared.train.rows(torch.arange(good))["images"].float().std() > 10
    notes = (tmp_path / "notes.txt").read_text() if pixels_only else ""
    assert all(key in notes for key in pixels_only)


def test_pictures_that_look_like_one_of_validation_are_put_aside(tmp_path: Path) -> None:
    poison.good(tmp_path / "f", 12, captions=False)
    original = Image.open(tmp_path / "f/val/cat/001.jpg").resize((200, 200), Image.Resampling.BICUBIC)
    (tmp_path / "f/val/cat/000.jpg").write_bytes(poison.encoded(original, "JPEG", quality=95))
    (tmp_path / "f/train/dog/again.jpg").write_bytes(poison.encoded(original.resize((120, 120)), "JPEG", quality=60))
    data = replace(DATA, source="imagefolder", path=str(tmp_path / "f"), templates=("a {}",), shard_samples=100)
    prepare(tmp_path / "exact", data, 0, ONE)
    assert put_aside(tmp_path / "exact") == {}
    prepare(tmp_path / "alike", replace(data, duplicate_bits=4), 0, ONE)
    assert put_aside(tmp_path / "alike") == {"dog_again": "image looks like one in validation"}


def test_captions_come_from_templates_where_there_are_labels_only(tmp_path: Path) -> None:
    poison.good(tmp_path / "f", 12, captions=False)
    data = replace(DATA, source="imagefolder", path=str(tmp_path / "f"), templates=("a {}", "one {}"))
    prepare(tmp_path / "p", data, 0, ONE)
    rows = pq.read_table(tmp_path / "p" / "train.rows.parquet").to_pylist()
    assert {row["caption"] for row in rows} == {"a cat", "one cat", "a dog", "one dog"}
    assert all(row["caption"].endswith(row["class_name"]) for row in rows)
    prepared = Prepared.open(tmp_path / "p")
    assert (prepared.captioned, prepared.labelled) == (True, True)
    prepare(tmp_path / "q", replace(data, templates=()), 0, ONE)
    assert not Prepared.open(tmp_path / "q").captioned


def test_pictures_without_labels_are_of_one_class(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:03d}.jpg").write_bytes(png(pixels(30, i), "JPEG"))
    data = replace(DATA, source="imagefolder", path=str(tmp_path), validation_samples=5, templates=("a {}",))
    facts = prepare(tmp_path.with_name("p"), data, 0, ONE)
    prepared = Prepared.open(tmp_path.with_name("p"))
    assert (prepared.captioned, prepared.labelled, prepared.num_classes) == (False, False, 1)
    prepared.check_captions("ssl+ae")
    with pytest.raises(ValueError, match=r"pretrain.objective=clip\+ae needs captions, and the data has none"):
        prepared.check_captions("clip+ae")
    assert (len(prepared.train), prepared.train.labels.unique().tolist()) == (15, [0])
    assert facts["train"]["pictures_per_class"]["all"] == [15]


def test_large_pictures_are_stored_smaller_and_batches_hold_what_half_of_them_give(tmp_path: Path) -> None:
    for i in range(12):
        side = 100 if i % 3 else 20
        (tmp_path / f"{i:03d}.jpg").write_bytes(png(pixels(40, i, height=side, width=2 * side), "JPEG"))
    data = replace(DATA, source="imagefolder", path=str(tmp_path), validation_samples=3, image_size=32, shard_samples=20)
    prepare(tmp_path.with_name("p"), data, 0, ONE)
    prepared = Prepared.open(tmp_path.with_name("p"))
    assert prepared.train.store_size == 40  # 1.25 x 32
    index = {name: column.tolist() for name, column in load_index(tmp_path.with_name("p")).items()}
    assert set(zip(index["height"], index["width"], strict=True)) == {(40, 80), (20, 40)}
    prepare(tmp_path.with_name("q"), replace(data, store_size=64), 0, ONE)
    assert Prepared.open(tmp_path.with_name("q")).train.store_size == 64


def load_index(folder: Path) -> dict[str, torch.Tensor]:
    from vtp.artifacts import load_tensors

    return load_tensors(folder / "train-00000.index.safetensors")
