"""Where pictures and captions come from. A source hands out rows by number and says nothing about their quality: see `contract`.

A further source is a class of the form of `Source` and a line in `open_source`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vtp.config import DataParams, ParquetColumns
from vtp.data.shards import ClassInfo

PREFIXES = {"train": ("train-",), "validation": ("val-", "validation-")}
"""What the names of a split's parquet files begin with."""


@dataclass(frozen=True)
class Row:
    """One sample as the source has it; None where the source has nothing."""

    key: str | None
    image: bytes | None
    caption: str | None
    label: int | None
    class_name: str | None
    factors: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Numbered rows of two splits, `train` and `validation`. Travels to worker processes, so it must pickle."""

    def classes(self) -> list[ClassInfo]:
        """The known classes, by label."""
        ...

    def length(self, split: str) -> int:
        """Number of rows of a split."""
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterator[Row]:
        """Rows [start, stop) of a split, the same ones at every call."""
        ...


def open_source(data: DataParams, seed: int) -> Source:
    """The source that `data.source` names. `seed` is used by rendered data only."""
    wanted = {"train": data.train_samples, "validation": data.validation_samples}
    if data.source == "scenes":
        return Scenes(seed, data.image_size, {split: count or 0 for split, count in wanted.items()})
    assert data.path is not None  # the schema sees to it
    return Parquet(Path(data.path), data.parquet, wanted)


class Scenes:
    """Pictures rendered here, as PNG: row i of a split is a function of (seed, split, i)."""

    def __init__(self, seed: int, image_size: int, lengths: dict[str, int]) -> None:
        self.seed, self.image_size, self.lengths = seed, image_size, lengths

    def classes(self) -> list[ClassInfo]:
        from vtp.data import scenes

        return [ClassInfo(name, dict(factors)) for name, factors in scenes.CLASSES]

    def length(self, split: str) -> int:
        return self.lengths[split]

    def rows(self, split: str, start: int, stop: int) -> Iterator[Row]:
        from PIL import Image

        from vtp.data import pictures, scenes

        for i in range(start, stop):
            scene = scenes.render(self.seed, split, i, self.image_size)
            image = pictures.encode(Image.fromarray(np.asarray(scene.picture)))
            name = scenes.CLASSES[scene.label][0]
            yield Row(f"{split}_{i:07d}", image, scene.caption, int(scene.label), name, dict(scene.factors))


class Parquet:
    """Image bytes, captions and labels in a folder of `train-*.parquet` and `val-*.parquet` or `validation-*.parquet`.

    A class is a label, counted from 0 without gaps, that at least two training rows carry: a label met once is taken for a slip.
    Its name is the one most of its rows give. Keys come from the column `key`, or from file and row number without one.

    Args:
        folder: where the files are.
        columns: names of the columns.
        wanted: rows to take of each split, spread evenly over all there are and over the classes; None takes all.

    Raises:
        ValueError: no files, a missing column, a column of another type, more rows wanted than there are.
    """

    def __init__(self, folder: Path, columns: ParquetColumns, wanted: dict[str, int | None]) -> None:
        import pyarrow.parquet as pq

        self.folder, self.columns = folder, columns
        self.files: dict[str, list[Path]] = {}
        self.first: dict[str, list[int]] = {}
        self.chosen: dict[str, np.ndarray] = {}
        for split, count in wanted.items():
            self.files[split] = self._find(split)
            self.first[split] = [0, *accumulate(pq.read_metadata(file).num_rows for file in self.files[split])]
            labels = self._labels(split)
            if count is not None and count > len(labels):
                raise ValueError(f"data.{split}_samples={count}, but {folder} has {len(labels)} such rows; use null for all.")
            self.chosen[split] = np.arange(len(labels)) if count is None else spread(labels, count)
        self._classes = self._find_classes()

    def classes(self) -> list[ClassInfo]:
        return self._classes

    def length(self, split: str) -> int:
        return len(self.chosen[split])

    def rows(self, split: str, start: int, stop: int) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        places = self.chosen[split][start:stop]
        names = [self.columns.image, self.columns.caption, self.columns.label, self.columns.class_name]
        while len(places):
            number = bisect_right(self.first[split], places[0]) - 1
            path, before = self.files[split][number], self.first[split][number]
            with pq.ParquetFile(path) as file:
                keys = ["key"] if "key" in file.schema_arrow.names else []
                for group in range(file.num_row_groups):
                    after = before + file.metadata.row_group(group).num_rows
                    here = places[: np.searchsorted(places, after)]
                    if len(here):
                        table = file.read_row_group(group, [*names, *keys]).take(pa.array(here - before))
                        columns = [table[name].to_pylist() for name in [*keys, *names]]
                        if not keys:
                            columns.insert(0, [f"{path.stem}_{place - self.first[split][number]:07d}" for place in here])
                        for values in zip(*columns, strict=True):
                            yield Row(*values)
                        places = places[len(here) :]
                    before = after

    def _find(self, split: str) -> list[Path]:
        files = sorted(path for prefix in PREFIXES[split] for path in self.folder.glob(prefix + "*.parquet"))
        if not files:
            patterns = " or ".join(prefix + "*.parquet" for prefix in PREFIXES[split])
            raise ValueError(f"data.path={self.folder} holds no {patterns}; name the folder of the parquet files.")
        for file in files:
            self._check_columns(file)
        return files

    def _check_columns(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = (pa.types.is_string, pa.types.is_large_string)
        kinds = {
            "image": ((pa.types.is_binary, pa.types.is_large_binary), "bytes"),
            "caption": (text, "text"),
            "label": ((pa.types.is_integer,), "whole numbers"),
            "class_name": (text, "text"),
        }
        schema = pq.read_schema(file)
        for key, (tests, kind) in kinds.items():
            name = getattr(self.columns, key)
            if name not in schema.names:
                raise ValueError(f"data.parquet.{key}={name} is not a column of {file}; it has {', '.join(schema.names)}.")
            if not any(test(schema.field(name).type) for test in tests):
                raise ValueError(f"data.parquet.{key}={name} must hold {kind}, but is {schema.field(name).type} in {file}.")

    def _labels(self, split: str) -> np.ndarray:
        """Labels of all rows of a split, -1 where there is none."""
        import pyarrow.parquet as pq

        tables = [pq.read_table(file, columns=[self.columns.label]) for file in self.files[split]]
        return np.concatenate([table[0].fill_null(-1).to_numpy().astype(np.int64) for table in tables])

    def _find_classes(self) -> list[ClassInfo]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [self.columns.label, self.columns.class_name]
        tables = [pq.read_table(file, columns=names) for file in self.files["train"]]
        table = pa.concat_tables(tables).rename_columns(["label", "name"])
        counts: dict[int, dict[str, int]] = {}
        for row in table.group_by(["label", "name"]).aggregate([([], "count_all")]).to_pylist():
            if row["label"] is not None and row["name"] is not None:
                counts.setdefault(row["label"], {})[row["name"]] = row["count_all"]
        classes: list[ClassInfo] = []
        while sum(counts.get(len(classes), {}).values()) >= 2:
            found = counts[len(classes)]
            classes.append(ClassInfo(min(found, key=lambda name: (-found[name], name)), {}))
        if not classes:
            raise ValueError(f"{self.columns.label} in {self.folder} is 0 on fewer than two training rows; labels count from 0.")
        return classes


def spread(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` row numbers, ascending, evenly spread over the rows of each label: (count) int64.

    Labels keep their shares, and each has one row at least where `count` allows it.

    Args:
        labels: (n) int64, n >= count.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if count < len(sizes):  # too few for all labels: evenly spread over the labels in order
        order = np.argsort(inverse, kind="stable")
        return np.sort(order[np.arange(count) * len(labels) // count])
    # One row for each label, the others in proportion; what rounding leaves goes to the largest remainders.
    spare, others = count - len(sizes), max(len(labels) - len(sizes), 1)
    quotas = 1 + spare * (sizes - 1) // others
    remainders = spare * (sizes - 1) % others
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    chosen = [mine[np.arange(quota) * len(mine) // quota] for mine, quota in zip(rows, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))
