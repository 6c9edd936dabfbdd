from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.stub import DATA
from vtp.config_data import ParquetColumns
from vtp.data import contract
from vtp.data.shards import ClassInfo
from vtp.data.sources import Row, open_source
from vtp.data.sources.base import spread
from vtp.data.sources.parquet import Parquet


def source(folder: Path, **changes: object) -> Parquet:
    return Parquet(replace(DATA, path=str(folder), shard_samples=1000, **changes))  # type: ignore[arg-type]


def columns(**changes: str | None) -> ParquetColumns:
    return replace(DATA.parquet, **changes)


def rows_of(found: Parquet, split: str = "train") -> list[Row]:
    return [row for part in range(found.parts(split)) for row in found.rows(split, part)]


def write(path: Path, labels: Sequence[int | None], names: list[str], *, first: int = 0, keys: bool = True) -> None:
    numbers = range(first, first + len(labels))
    columns = {
        "image": pa.array([b"image %d" % i for i in numbers]),
        "caption": pa.array([f"text {i}" for i in numbers]),
        "label": pa.array(labels, pa.int32()),
        "class_name": pa.array(names),
    }
    table = pa.table(columns | ({"key": pa.array([f"k{i}" for i in numbers])} if keys else {}))
    pq.write_table(table, path, row_group_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 training rows in two files, sorted by class: 11 of class 0, 8 of class 1, 4 of class 2."""
    labels = [0] * 11 + [1] * 8 + [2] * 4
    names = [f"name {label}" for label in labels]
    write(tmp_path / "train-00000.parquet", labels[:10], names[:10])
    write(tmp_path / "train-00001.parquet", labels[10:], names[10:], first=10)
    write(tmp_path / "val-00000.parquet", [2, 1, 0], ["name 2", "name 1", "name 0"], first=100)
    return tmp_path


def test_rows_run_through_files_and_row_groups(folder: Path) -> None:
    found = source(folder)
    assert found.classes == [ClassInfo(f"name {i}", {}) for i in range(3)]
    assert found.captioned
    rows = rows_of(found)
    assert rows[20] == Row("k20", b"image 20", "text 20", 2, "name 2", {}, str(folder / "train-00001.parquet"))
    assert [row.key for row in rows] == [f"k{i}" for i in range(23)]
    assert [row.key for row in rows_of(found, "validation")] == ["k100", "k101", "k102"]
    for samples in (1, 3, 4, 7, 22, 23):
        parted = Parquet(replace(DATA, path=str(folder), shard_samples=samples))
        assert (parted.parts("train"), rows_of(parted)) == (-(-23 // samples), rows)


def test_a_limited_selection_is_spread_over_rows_and_classes(folder: Path) -> None:
    rows = rows_of(source(folder, train_samples=6, validation_samples=2))
    assert [row.label for row in rows] == [0, 0, 0, 1, 1, 2]
    assert rows == rows_of(source(folder, train_samples=6))
    with pytest.raises(ValueError, match=r"data.train_samples=24, but .* has 23 such rows"):
        source(folder, train_samples=24)


def test_spread_keeps_shares_and_reaches_every_label() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 7], [500, 300, 199, 1]))
    for count in (4, 5, 50, 333, 999, 1000):
        chosen = spread(labels, count)
        assert len(chosen) == count == len(set(chosen.tolist()))
        assert (np.diff(chosen) > 0).all()
        found = np.array([(labels[chosen] == label).sum() for label in (0, 1, 2, 7)])
        assert (found >= 1).all()
        assert np.abs(found / count - np.array([0.5, 0.3, 0.199, 0.001])).max() < 1.5 / count + 0.001 or count < 50
    assert len(set(spread(labels, 2).tolist())) == 2
    # Rows of one label: as even as whole numbers allow.
    gaps = np.diff(spread(np.zeros(100, dtype=np.int64), 30))
    assert set(gaps.tolist()) == {3, 4}


def test_a_label_met_once_is_no_class_and_most_rows_name_it(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0, 0, 0, 1, 1, 2, None, -1], ["a", "b", "a", "c", "c", "d", "a", "a"])
    write(tmp_path / "validation-0.parquet", [0], ["a"], keys=False)
    found = source(tmp_path)
    assert [entry.name for entry in found.classes] == ["a", "c"]
    assert rows_of(found, "validation")[0].key == "validation-0_0000000"
    assert [row.label for row in rows_of(found)[5:]] == [2, None, -1]


def test_files_of_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"image %d" % i, "path": f"{i}.jpg"} for i in range(4)])
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}
    written = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": image, "label": pa.array([0, 1, 1, 5])}).replace_schema_metadata(written)
    for name in ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"):
        pq.write_table(table, tmp_path / name)
    found = source(tmp_path, parquet=columns(caption=None, class_name=None))
    assert [entry.name for entry in found.classes] == ["cat", "dog", "emu"]
    assert not found.captioned
    file = str(tmp_path / "train-00000-of-00001.parquet")
    assert rows_of(found)[3] == Row("train-00000-of-00001_0000003", b"image 3", None, 5, None, file=file)
    names = tmp_path / "names.txt"
    names.write_text("katze\nhund\n")
    found = source(tmp_path, class_names=str(names), parquet=columns(caption=None, class_name=None))
    assert [entry.name for entry in found.classes] == ["katze", "hund"]
    names.write_text("katze\n\nhund\n")
    with pytest.raises(ValueError, match=r"names.txt must hold a name in each line"):
        source(tmp_path, class_names=str(names), parquet=columns(caption=None, class_name=None))


def test_keys_come_from_whatever_a_file_is_called(tmp_path: Path) -> None:
    file = tmp_path / "train-part 0.snappy.parquet"
    write(file, [0, 0], ["a", "a"], keys=False)
    write(tmp_path / "val-0.parquet", [0], ["a"])
    keys = [row.key for row in rows_of(source(tmp_path))]
    assert len(set(keys)) == 2
    assert all(key is not None and re.fullmatch(contract.KEY, key) for key in keys)


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    file = folder / "train-00001.parquet"
    whole = file.read_bytes()
    torn = bytearray(whole)
    torn[4:-600] = bytes(len(whole) - 604)  # the footer stays
    for content, words in ((b"", "0 bytes"), (whole[:300], "magic bytes"), (bytes(torn), ".*")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train-00001\.parquet cannot be read \(.*{words}.*\); fetch it anew") as caught:
            rows_of(source(folder))
        assert "\n" not in str(caught.value)
    file.unlink()
    file.mkdir()  # as Spark writes
    with pytest.raises(ValueError, match=r"train-00001\.parquet cannot be read \(.*directory.*\)"):
        source(folder)


def test_the_name_of_a_folder_is_no_column(folder: Path) -> None:
    folder = folder.rename(folder.with_name("label=7"))
    assert {row.label for row in rows_of(source(folder))} == {0, 1, 2}


def test_pictures_alone_are_enough(folder: Path) -> None:
    found = source(folder, parquet=columns(caption=None, label=None, class_name=None), train_samples=5)
    assert (found.classes, found.captioned) == ([], False)
    assert [(row.key, row.label, row.caption) for row in rows_of(found)] == [(f"k{i}", None, None) for i in (0, 4, 9, 13, 18)]


def test_validation_may_lie_elsewhere_or_be_held_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write(other / "anything.parquet", [0, 1], ["name 0", "name 1"], first=200)
    found = source(folder, validation_path=str(other))
    assert [row.key for row in rows_of(found, "validation")] == ["k200", "k201"]
    assert len(rows_of(found)) == 23
    (folder / "val-00000.parquet").unlink()
    found = source(folder, validation_samples=5)
    held_out, kept = ({row.key for row in rows_of(found, split)} for split in ("validation", "train"))
    assert len(held_out) == 5
    assert len(kept) == 18
    assert not held_out & kept
    assert {row.label for row in rows_of(found, "validation")} == {0, 1, 2}
    both = source(folder, validation_samples=5, train_samples=9)
    assert {row.key for row in rows_of(both, "validation")} == held_out
    assert {row.key for row in rows_of(both)} < kept


def test_files_that_do_not_fit_say_which_key_to_change(folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"data.parquet.caption=text is not a column of .*train-00000.parquet; it has image, caption, .*; null does without",
    ):
        source(folder, parquet=columns(caption="text"))
    with pytest.raises(ValueError, match=r"data.parquet.label=caption must hold whole numbers, but is string"):
        source(folder, parquet=columns(label="caption"))
    (folder / "val-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds no val-\*.parquet or validation-\*.parquet"):
        open_source(replace(DATA, path=str(folder)), seed=0)


@pytest.mark.parametrize("kinds", [(pa.uint8(), pa.uint8()), (pa.uint64(), pa.uint64()), (pa.int32(), pa.int64())])
def test_labels_are_whole_numbers_of_any_width_and_keys_may_be(tmp_path: Path, kinds: Sequence[pa.DataType]) -> None:
    for number, kind in enumerate(kinds):
        first = 10 * number
        table = {
            "key": pa.array(range(first, first + 6)),
            "image": pa.array([b"x"] * 6),
            "label": pa.array([0, 0, 1, 1, 0, None], kind),
        }
        pq.write_table(pa.table(table), tmp_path / f"train-{number}.parquet")
    found = source(tmp_path, parquet=columns(caption=None, class_name=None), validation_samples=2)
    assert [entry.name for entry in found.classes] == ["class 0", "class 1"]
    rows = {row.key: row.label for split in ("train", "validation") for row in rows_of(found, split)}
    assert (rows["2"], rows["13"], rows["5"]) == (1, 1, None)


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    table = {"key": pa.array([0.5, 1.5]), "image": pa.array([b"x"] * 2), "label": pa.array([0, 0])}
    pq.write_table(pa.table(table), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"the column key of .* must hold text or whole numbers, but is double"):
        source(tmp_path, parquet=columns(caption=None, class_name=None), validation_samples=1)
