from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.stub import DATA
from vtp.data.shards import ClassInfo
from vtp.data.sources import Parquet, Row, open_source, spread

COLUMNS = DATA.parquet
ALL: dict[str, int | None] = {"train": None, "validation": None}


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
    source = Parquet(folder, COLUMNS, ALL)
    assert source.classes() == [ClassInfo(f"name {i}", {}) for i in range(3)]
    assert (source.length("train"), source.length("validation")) == (23, 3)
    rows = list(source.rows("train", 0, 23))
    assert rows[20] == Row("k20", b"image 20", "text 20", 2, "name 2", {})
    assert [row.key for row in rows] == [f"k{i}" for i in range(23)]
    for start in range(0, 23, 3):
        for stop in (start, start + 1, start + 9):
            assert list(source.rows("train", start, stop)) == rows[start:stop]


def test_a_limited_selection_is_spread_over_rows_and_classes(folder: Path) -> None:
    source = Parquet(folder, COLUMNS, {"train": 6, "validation": 2})
    rows = list(source.rows("train", 0, 6))
    assert [row.label for row in rows] == [0, 0, 0, 1, 1, 2]
    assert rows == list(Parquet(folder, COLUMNS, {"train": 6, "validation": None}).rows("train", 0, 6))
    assert list(source.rows("train", 2, 5)) == rows[2:5]
    with pytest.raises(ValueError, match=r"data.train_samples=24, but .* has 23 such rows"):
        Parquet(folder, COLUMNS, {"train": 24, "validation": None})


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
    source = Parquet(tmp_path, COLUMNS, ALL)
    assert [entry.name for entry in source.classes()] == ["a", "c"]
    assert next(source.rows("validation", 0, 1)).key == "validation-0_0000000"
    assert [row.label for row in source.rows("train", 5, 8)] == [2, None, -1]


def test_files_that_do_not_fit_say_which_key_to_change(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data.parquet.caption=text is not a column of .*train-00000.parquet; it has image, caption"
    ):
        Parquet(folder, replace(COLUMNS, caption="text"), ALL)
    with pytest.raises(ValueError, match=r"data.parquet.label=caption must hold whole numbers, but is string"):
        Parquet(folder, replace(COLUMNS, label="caption"), ALL)
    (folder / "val-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds no val-\*.parquet or validation-\*.parquet"):
        open_source(replace(DATA, path=str(folder)), seed=0)
