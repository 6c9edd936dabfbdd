from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.stub import CLASSES, good_row, pixels
from vtp.data import shards
from vtp.data.captions import tokenize
from vtp.data.shards import Prepared, Split, tar_name, write_shard

KEPT = [i for i in range(20) if i != 7]


def test_every_sample_comes_back_by_number(prepared: Path) -> None:
    data = Prepared.open(prepared)
    assert (data.classes, data.num_classes, data.image_size) == (CLASSES, 3, 16)
    assert data.train.shard_lengths == [6, 5, 6, 2]
    assert data.validation.shard_lengths == [6, 2]
    for split, name, numbers in ((data.train, "train", KEPT), (data.validation, "validation", list(range(8)))):
        assert len(split) == len(numbers)
        assert split.labels.tolist() == [i % 3 for i in numbers]
        assert torch.equal(split.tokens, tokenize([good_row(name, i).caption or "" for i in numbers], 8))
        for place, i in enumerate(numbers):
            assert split.caption(place) == (good_row(name, i).caption or "").strip()
            assert np.array_equal(split.image(place).permute(1, 2, 0).numpy(), pixels(name == "train", i))


def test_rows_gather_what_single_reads_give(prepared: Path) -> None:
    split = Split.open(prepared, "train")
    batch = split.rows(torch.tensor([18, 0, 7, 7]))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "images": ((4, 3, 16, 16), torch.uint8),
        "tokens": ((4, 8), torch.int64),
        "labels": ((4,), torch.int64),
    }
    for row, place in enumerate([18, 0, 7, 7]):
        assert torch.equal(batch["images"][row], split.image(place))
        assert torch.equal(batch["tokens"][row], split.tokens[place])
        assert batch["labels"][row] == split.labels[place]


def test_tars_are_plain_and_paired(prepared: Path) -> None:
    with tarfile.open(prepared / tar_name("train", 1)) as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile("train_6.json") or io.BytesIO())
        assert all((member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "") for member in tar.getmembers())
    assert names == [f"train_{i}.{suffix}" for i in (6, 8, 9, 10, 11) for suffix in ("png", "json")]
    assert about == {"caption": "a red star no 6", "label": 0, "class_name": "red star", "colour": "red"}
    rows = pq.read_table(prepared / "train.rows.parquet").to_pylist()
    assert rows[6] == {"key": "train_6", "caption": "a red star no 6", "label": 0, "class_name": "red star", "colour": "red"}


def test_offsets_point_at_the_image_bytes(tmp_path: Path) -> None:
    samples = [(f"k{i}", ".png", bytes([i]) * (500 + 300 * i), {"label": i, "caption": "é"}) for i in range(5)]
    offsets, lengths = write_shard(tmp_path / "a.tar", samples)
    data = (tmp_path / "a.tar").read_bytes()
    for (_, _, image, _), offset, length in zip(samples, offsets, lengths, strict=True):
        assert data[offset : offset + length] == image
    write_shard(tmp_path / "b.tar", samples)
    assert (tmp_path / "b.tar").read_bytes() == data


def test_a_split_pickles_small_and_reads_on(prepared: Path) -> None:
    split = Split.open(prepared, "train")
    split.image(3)
    text = pickle.dumps(split)
    assert len(text) < 1000
    assert torch.equal(pickle.loads(text).image(3), split.image(3))


def test_few_tars_stay_open(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    split, fresh = Split.open(prepared, "train"), Split.open(prepared, "train")
    order = [0, 18, 6, 12, 1, 17, 7, 13]
    assert all(torch.equal(split.image(i), fresh.image(i)) for i in order)
    assert len(split._files) == 2


@pytest.mark.parametrize("damage", ["overwritten", "cut", "gone"])
def test_damage_names_shard_and_key(prepared: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    file = folder / tar_name("train", 1)
    split = Split.open(folder, "train")
    place, offset = 8, int(split._index["offset"][8])
    if damage == "overwritten":
        with file.open("r+b") as tar:
            tar.seek(offset)
            tar.write(b"\0" * 100)
    elif damage == "cut":
        with file.open("r+b") as tar:
            tar.truncate(offset + 50)
    else:
        file.unlink()
    with pytest.raises(ValueError, match=r"train-00001.tar: picture train_9 cannot be read"):
        split.image(place)
    split.image(0)


def test_an_unfinished_folder_does_not_open(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    (folder / tar_name("validation", 1)).unlink()
    with pytest.raises(ValueError, match=r"validation-00001\.tar is missing"):
        Prepared.open(folder)
