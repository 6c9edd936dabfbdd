from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.data.stub import DATA, ONE, good_row, pixels, png, stub
from vtp.artifacts import load_json, read_manifest
from vtp.data.prepare import How, prepare, prepare_source
from vtp.data.shards import Prepared, Split

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def quarantine(folder: Path) -> list[tuple[str, str, str]]:
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    return [(row["split"], row["key"], row["reason"]) for row in rows]


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
    facts = prepare_source(tmp_path / "p", stub(changes=POISON), DATA, ONE)
    assert quarantine(tmp_path / "p") == [
        ("train", "train_1", "image is no picture of a known format"),
        ("train", "train_2", "caption is empty"),
        ("train", "train_4", "key is that of an earlier row"),
        ("train", "train_9", "label is not that of a known class"),
        ("train", "train_0", "key is that of an earlier row"),
        ("train", "train_15", "image is also in validation"),
        ("train", "validation_1", "key is also in validation"),
        ("train", "train_17", "caption is missing; image is missing"),
        ("validation", "validation_3", "image is smaller than 8 pixels"),
        ("validation", "validation_0", "key is that of an earlier row"),
    ]
    data = Prepared.open(tmp_path / "p")
    keys = pq.read_table(tmp_path / "p" / "train.rows.parquet")["key"].to_pylist()
    assert keys == [f"train_{i}" for i in range(20) if ("train", i) not in POISON]
    for place, key in enumerate(keys):
        assert np.array_equal(data.train.image(place).permute(1, 2, 0), pixels(True, int(key[6:])))
    assert (len(data.train), len(data.validation)) == (12, 6)
    assert facts["train"]["broken"]["key is that of an earlier row"] == 2
    assert facts["train"]["broken_rows"] == 8


def test_too_many_broken_rows_stop_with_counts_and_leave_no_folder(tmp_path: Path) -> None:
    data = replace(DATA, max_bad_fraction=0.39)
    message = r"8 of 20 train rows are broken \(key is that of an earlier row: 2, .*caption is empty: 1.*; "
    message += r"first train_1, train_2, train_4\), more than data.max_bad_fraction=0.39"
    with pytest.raises(ValueError, match=message):
        prepare_source(tmp_path / "p", stub(changes=POISON), data, ONE)
    assert list(tmp_path.iterdir()) == []
    prepare_source(tmp_path / "p", stub(changes=POISON), replace(DATA, max_bad_fraction=0.4), ONE)


def test_every_row_broken_stops_whatever_is_allowed(tmp_path: Path) -> None:
    changes: dict[tuple[str, int], dict[str, object]] = {("validation", i): {"caption": ""} for i in range(4)}
    with pytest.raises(ValueError, match="4 of 4 validation rows are broken"):
        prepare_source(tmp_path / "p", stub(6, 4, changes), replace(DATA, max_bad_fraction=1.0), ONE)
    with pytest.raises(ValueError, match="has no validation rows"):
        prepare_source(tmp_path / "p", stub(6, 0), DATA, ONE)


def test_number_of_workers_does_not_show_in_any_byte(tmp_path: Path) -> None:
    for workers in (1, 3):
        prepare_source(tmp_path / str(workers), stub(changes=POISON), DATA, How(workers=workers))
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    read_manifest(tmp_path / "3")


def test_a_folder_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    prepare_source(tmp_path / "p", stub(20), DATA, ONE)
    prepare_source(tmp_path / "p", stub(6), DATA, ONE)
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
    names = ("source", "image_size", "store_size", "context_length", "num_classes", "labelled", "captioned")
    assert [manifest[name] for name in names] == ["parquet", 16, 16, 8, 3, True, True]


def test_a_poisoned_parquet_folder_from_end_to_end(tmp_path: Path) -> None:
    poison = {key: change for key, change in POISON.items() if key[0] == "train"}
    for split, prefix in (("train", "train"), ("validation", "val")):
        source = stub(changes=poison)
        rows = [row for part in range(source.parts(split)) for row in source.rows(split, part)]
        columns = {name: [getattr(row, name) for row in rows] for name in ("key", "image", "caption", "label", "class_name")}
        pq.write_table(pa.table(columns), tmp_path / f"{prefix}-00000.parquet", row_group_size=5)
    data = replace(DATA, path=str(tmp_path))
    prepare(tmp_path / "p", data, 0, ONE)
    assert [entry.name for entry in Prepared.open(tmp_path / "p").classes] == ["red star", "blue disc", "red disc"]
    assert len(quarantine(tmp_path / "p")) == len(poison)
    prepare(tmp_path / "few", replace(data, train_samples=9, validation_samples=6), 0, ONE)
    assert len(pq.read_table(tmp_path / "few" / "validation.rows.parquet")) == 6
