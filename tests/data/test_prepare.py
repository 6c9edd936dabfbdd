from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.data.stub import DATA, good_row, pixels, png, stub
from vtp.artifacts import load_json, read_manifest
from vtp.data import pictures
from vtp.data.prepare import prepare, prepare_source
from vtp.data.shards import Prepared, Split

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def quarantine(folder: Path) -> list[tuple[str, str, str]]:
    return [tuple(row.values()) for row in pq.read_table(folder / "quarantine.parquet").to_pylist()]


def test_centre_crop_matches_the_oracle() -> None:
    names = sorted({name.split(".")[0] for name in ORACLE if name.startswith("crop")})
    assert len(names) == 3
    for name in names:
        expected = ORACLE[f"{name}.output"].numpy().astype(int)
        found = pictures.centre_crop(Image.fromarray(ORACLE[f"{name}.input"].numpy()), len(expected))
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


def test_pictures_of_the_right_form_keep_their_bytes() -> None:
    for format, suffix in (("PNG", ".png"), ("JPEG", ".jpg")):
        data = png(pixels(1), format)
        picture = pictures.prepare(data, 16)
        assert picture
        assert (picture.data, picture.suffix, picture.short_side) == (data, suffix, 16)
        assert picture.pixels == Image.open(io.BytesIO(data)).tobytes()
        decoded = np.asarray(Image.open(io.BytesIO(data)))
        assert all((picture.histogram[c] == np.bincount(decoded[..., c].ravel(), minlength=256)).all() for c in range(3))


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGB", "BMP")],
)
def test_other_pictures_become_rgb_png(mode: str, format: str) -> None:
    picture = pictures.prepare(png(pixels(1), format, mode), 16)
    assert picture
    assert picture.suffix == ".png"
    image = Image.open(io.BytesIO(picture.data))
    assert (image.mode, image.format, image.size, image.tobytes()) == ("RGB", "PNG", (16, 16), picture.pixels)
    if mode == "RGB":
        assert np.array_equal(np.asarray(image), pixels(1))


def test_pictures_that_cannot_be_decoded_in_full_are_none() -> None:
    whole, deep = png(pixels(1)), io.BytesIO()
    Image.fromarray(np.zeros((16, 16), dtype=np.uint16)).save(deep, "PNG")
    for data in (None, b"", b"not an image", whole[:-60], png(pixels(2), "JPEG")[:300], deep.getvalue()):
        assert pictures.prepare(data, 16) is None


POISON: dict[tuple[str, int], dict[str, object]] = {
    ("train", 1): {"image": b"\x89PNG broken"},
    ("train", 2): {"caption": "  "},
    ("train", 5): {"key": "train_4"},  # of the same shard
    ("train", 9): {"label": 9},
    ("train", 13): {"key": "train_0"},  # of another shard
    ("train", 15): {"image": good_row("validation", 6).image},
    ("train", 16): {"key": "validation_1"},
    ("train", 17): {"image": None, "caption": None},
    ("validation", 3): {"image": png(pixels(9, height=7, width=40))},
    ("validation", 7): {"key": "validation_0"},
}


def test_poisoned_rows_are_put_aside_with_reasons(tmp_path: Path) -> None:
    facts = prepare_source(tmp_path / "p", stub(changes=POISON), DATA, workers=1)
    assert quarantine(tmp_path / "p") == [
        ("train", "train_1", "image cannot be decoded"),
        ("train", "train_2", "caption is empty"),
        ("train", "train_4", "key is that of an earlier row"),
        ("train", "train_9", "label is not that of a known class"),
        ("train", "train_0", "key is that of an earlier row"),
        ("train", "train_15", "image is also in validation"),
        ("train", "validation_1", "key is also in validation"),
        ("train", "train_17", "caption is missing; image cannot be decoded"),
        ("validation", "validation_3", "image is smaller than 8 pixels"),
        ("validation", "validation_0", "key is that of an earlier row"),
    ]
    data = Prepared.open(tmp_path / "p")
    keys = pq.read_table(tmp_path / "p" / "train.rows.parquet")["key"].to_pylist()
    assert keys == [f"train_{i}" for i in range(20) if ("train", i) not in POISON]
    for place, key in enumerate(keys):
        assert np.array_equal(data.train.image(place).permute(1, 2, 0), pixels(True, int(key[6:])))
    assert (len(data.train), len(data.validation)) == (12, 6)
    assert facts["train"]["broken"]["image cannot be decoded"] == 2
    assert facts["train"]["broken_rows"] == 8


def test_too_many_broken_rows_stop_with_counts_and_leave_no_folder(tmp_path: Path) -> None:
    data = replace(DATA, max_bad_fraction=0.39)
    message = r"8 of 20 train rows are broken \(image cannot be decoded: 2, .*caption is empty: 1.*; "
    message += r"first keys train_1, train_2, train_4\), more than data.max_bad_fraction=0.39"
    with pytest.raises(ValueError, match=message):
        prepare_source(tmp_path / "p", stub(changes=POISON), data, workers=1)
    assert list(tmp_path.iterdir()) == []
    prepare_source(tmp_path / "p", stub(changes=POISON), replace(DATA, max_bad_fraction=0.4), workers=1)


def test_every_row_broken_stops_whatever_is_allowed(tmp_path: Path) -> None:
    changes: dict[tuple[str, int], dict[str, object]] = {("validation", i): {"caption": ""} for i in range(4)}
    with pytest.raises(ValueError, match="4 of 4 validation rows are broken"):
        prepare_source(tmp_path / "p", stub(6, 4, changes), replace(DATA, max_bad_fraction=1.0), workers=1)
    with pytest.raises(ValueError, match="has no validation rows"):
        prepare_source(tmp_path / "p", stub(6, 0), DATA, workers=1)


def test_number_of_workers_does_not_show_in_any_byte(tmp_path: Path) -> None:
    for workers in (1, 3):
        prepare_source(tmp_path / str(workers), stub(changes=POISON), DATA, workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    read_manifest(tmp_path / "3")


def test_a_folder_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    prepare_source(tmp_path / "p", stub(20), DATA, workers=1)
    prepare_source(tmp_path / "p", stub(6), DATA, workers=1)
    assert not (tmp_path / "p" / "train-00001.tar").exists()
    assert len(Prepared.open(tmp_path / "p").train) == 6


def test_statistics_describe_what_is_kept(prepared: Path) -> None:
    facts = load_json(prepared / "statistics.json")
    train = Split(prepared, "train")
    images = torch.stack([train.image(i) for i in range(len(train))]).double() / 255
    assert facts["channel_mean"] == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert facts["channel_std"] == pytest.approx(images.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert facts["train"]["rows"] == 20
    assert facts["train"]["pictures"] == 19
    assert facts["train"]["broken"] == {"caption is empty": 1}
    assert facts["train"]["pictures_per_class"] == {"least": 6, "most": 7, "all": [7, 6, 6]}
    # "a red star no 12" is seven ids with start and end, "... no 1" too: digits are single ids.
    lengths = (train.tokens == 49407).int().argmax(1) + 1
    assert facts["train"]["caption_ids"]["q50"] == lengths.double().median()
    assert facts["train"]["caption_ids"]["q100"] == lengths.max()
    assert facts["train"]["captions_filling_context"] == (lengths == 8).double().mean()
    manifest = read_manifest(prepared)
    assert {name: manifest[name] for name in ("source", "image_size", "context_length", "num_classes")} == {
        "source": "parquet",
        "image_size": 16,
        "context_length": 8,
        "num_classes": 3,
    }


def test_a_poisoned_parquet_folder_from_end_to_end(tmp_path: Path) -> None:
    poison = {key: change for key, change in POISON.items() if key[0] == "train"}
    for split, count, prefix in (("train", 20, "train"), ("validation", 8, "val")):
        rows = list(stub(changes=poison).rows(split, 0, count))
        columns = {name: [getattr(row, name) for row in rows] for name in ("key", "image", "caption", "label", "class_name")}
        pq.write_table(pa.table(columns), tmp_path / f"{prefix}-00000.parquet", row_group_size=5)
    data = replace(DATA, path=str(tmp_path))
    prepare(tmp_path / "p", data, seed=0, workers=1)
    assert [entry.name for entry in Prepared.open(tmp_path / "p").classes] == ["red star", "blue disc", "red disc"]
    assert len(quarantine(tmp_path / "p")) == len(poison)
    prepare(tmp_path / "few", replace(data, train_samples=9, validation_samples=6), seed=0, workers=1)
    assert len(pq.read_table(tmp_path / "few" / "validation.rows.parquet")) == 6
