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
from tests.waiting import wait_for
from vtp.artifacts import load_json, load_tensors, save_json
from vtp.data import shards
from vtp.data.batches import Batches
from vtp.data.captions import tokenize
from vtp.data.remote import local_copy
from vtp.data.shards import Prepared, Scratch, Split, index_name, tar_name, write_shard

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
    split = Split(prepared, "train")
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
    assert 0 < rows[6].pop("image_hash") < 2**64
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
    split = Split(prepared, "train")
    split.image(3)
    text = pickle.dumps(split)
    assert len(text) < 1000
    assert torch.equal(pickle.loads(text).image(3), split.image(3))


def test_few_shards_stay_open_and_only_those_asked_for(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    split, fresh = Split(prepared, "train"), Split(prepared, "train")
    order = [0, 18, 6, 12, 1, 17, 7, 13]
    assert all(torch.equal(split.image(i), fresh.image(i)) for i in order)
    assert len(split._open) == 2
    one = Split(prepared, "train")
    one.rows(torch.tensor([7, 6]))
    assert set(one._open) == {1}


def damaged(prepared: Path, folder: Path, *places: int) -> Path:
    """A copy of the prepared data in which these samples' bytes are overwritten."""
    shutil.copytree(prepared, folder)
    lengths = Split(folder, "train").shard_lengths
    for place in places:
        shard = next(i for i in range(len(lengths)) if place < sum(lengths[: i + 1]))
        offset = load_tensors(folder / index_name("train", shard))["offset"][place - sum(lengths[:shard])]
        with (folder / tar_name("train", shard)).open("r+b") as tar:
            tar.seek(int(offset))
            tar.write(b"\0" * 60)
    return folder


def test_the_next_good_picture_of_its_shard_stands_in_and_is_listed_once(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = damaged(prepared, tmp_path / "prepare", 8, 9, 18)  # the second shard holds 6 to 10, the last 17 and 18
    scratch = Scratch.of(tmp_path / "runs" / "pretrain" / "key", 1)
    whole, split = Split(prepared, "train"), Split(folder, "train", scratch)
    for _ in range(2):
        made, expected = split.rows(torch.tensor([8, 9, 7, 18])), whole.rows(torch.tensor([10, 10, 7, 17]))
        assert all(torch.equal(made[name], expected[name]) for name in expected)
    assert [line.split("\t") for line in scratch.notes.read_text().splitlines()] == [
        ["train-00001.tar", "train_9"],
        ["train-00001.tar", "train_10"],
        ["train-00003.tar", "train_19"],
    ]
    assert len(caplog.records) == 3
    assert "picture train_9 cannot be decoded (" in caplog.text
    assert torch.equal(Split(folder, "train").image(8), whole.image(10))


def test_a_shard_with_nothing_good_left_is_an_error(prepared: Path, tmp_path: Path) -> None:
    folder = damaged(prepared, tmp_path / "prepare", 17, 18)
    with pytest.raises(ValueError, match=r"train-00003\.tar: none of its 2 pictures can be decoded"):
        Split(folder, "train").image(17)


def test_a_shard_that_is_cut_or_gone_is_named(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    file, split = folder / tar_name("train", 1), Split(folder, "train")
    size = file.stat().st_size
    with file.open("r+b") as tar:
        tar.truncate(size - 1024)
    with pytest.raises(ValueError, match=rf"train-00001\.tar has not the {size} bytes with which"):
        split.image(8)
    file.unlink()
    with pytest.raises(ValueError, match=r"train-00001\.tar is gone since .* was made"):
        split.image(8)
    split.image(0)


def test_an_unfinished_folder_does_not_open(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    (folder / tar_name("validation", 1)).unlink()
    with pytest.raises(ValueError, match=r"validation-00001\.tar is missing"):
        Prepared.open(folder)


def test_tars_that_lie_elsewhere_are_fetched_when_they_are_needed(prepared: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    elsewhere = fsspec.filesystem("memory")
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    entries = load_json(folder / "train.shards.json")
    for entry in entries:
        elsewhere.pipe(f"/there/{entry['tar']}", (folder / entry["tar"]).read_bytes())
        (folder / entry["tar"]).unlink()
        entry["tar"] = f"memory://there/{entry['tar']}"
    save_json(folder / "train.shards.json", entries)
    scratch = Scratch.of(tmp_path / "runs" / "pretrain" / "key", 1)
    split, whole = Split(folder, "train", scratch), Split(prepared, "train")
    assert (split.remote, whole.remote) == (True, False)
    assert torch.equal(split.image(8), whole.image(8))
    assert [path.name.split("-", 1)[1] for path in scratch.cache.glob("[!.]*")] == ["train-00001.tar"]
    assert torch.equal(split.rows(torch.arange(19))["images"], whole.rows(torch.arange(19))["images"])
    stream = Batches(split, batch=2, seed=0, workers=0, shards_per_window=1)(0, 8)
    for path in scratch.cache.iterdir():
        path.unlink()
    assert torch.equal(
        next(stream)["labels"], next(Batches(whole, batch=2, seed=0, workers=0, shards_per_window=1)(0, 1))["labels"]
    )
    wait_for(lambda: len(list(scratch.cache.glob("[!.]*"))) == 2)  # this one and, fetched beside the work, the next
    stream.close()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"memory://there/train-00000\.tar lies elsewhere"):
        Split(folder, "train").image(0)
    fetched = []

    def gone_at_first(*asked: object) -> Path:
        """Another process makes room before the copy is opened here."""
        fetched.append(local_copy(*asked))  # type: ignore[arg-type]
        if len(fetched) < 3:
            fetched[-1].unlink()
        return fetched[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtp.data.shards.local_copy", gone_at_first)
        assert torch.equal(Split(folder, "train", scratch).image(8), whole.image(8))
    assert len(fetched) == 3
    elsewhere.rm("/there/train-00000.tar")
    for path in scratch.cache.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"memory://there/train-00000\.tar cannot be fetched"):
        Split(folder, "train", scratch).image(0)
