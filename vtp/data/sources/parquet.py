"""Pictures in parquet files, as `datasets` of Hugging Face writes them or as plain bytes."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vtp.config import DataParams
from vtp.data.shards import ClassInfo
from vtp.data.sources.base import Numbered, Row, key_of, listed_names, readable

if TYPE_CHECKING:
    import pyarrow as pa

PREFIXES = {"train": ("train-",), "validation": ("val-", "validation-")}
"""What the names of a split's files begin with."""


def parquet_files(data: DataParams) -> dict[str, list[Path]]:
    """The files of each split: `train-*.parquet`, and `val-*.parquet` or `validation-*.parquet`; of a folder that holds no such
    names all, if `data.validation_path` names another one for validation.

    Raises:
        ValueError: a folder is not there or holds none.
    """
    assert data.path is not None  # the schema sees to it
    folders = {"train": Path(data.path), "validation": Path(data.validation_path or data.path)}
    found = {}
    for split, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; data.path and data.validation_path name folders of parquet files.")
        files = sorted(path for prefix in PREFIXES[split] for path in folder.glob(prefix + "*.parquet"))
        if not files and data.validation_path is not None:
            files = sorted(folder.glob("*.parquet"))
        if not files and (split == "train" or data.validation_path is not None or data.validation_samples is None):
            patterns = " or ".join(prefix + "*.parquet" for prefix in PREFIXES[split])
            raise ValueError(f"{folder} holds no {patterns}; name the folder of the parquet files.")
        if files:
            found[split] = files
    return found


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Name the file when it cannot be read, which its reader does not."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}); fetch it anew, or leave it out.") from None


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    with _told(file):
        return pq.read_metadata(file).num_rows


def _columns(file: Path, names: list[str]) -> pa.Table:
    import pyarrow.parquet as pq

    with _told(file), pq.ParquetFile(file) as opened:  # read_table would take a folder called label=3 for a column
        return opened.read(columns=names)


class Parquet(Numbered):
    """Image bytes, captions and labels in a folder of parquet files (`parquet_files`).

    The image column holds bytes or structs of bytes and path. A class is a label, counted from 0 without gaps, that at least two
    training rows carry: a label met once is taken for a slip. Its name is the one most of its rows give; without a column of
    names it comes from `data.class_names` or from what `datasets` keeps in the schema. Keys come from the column `key`, or from
    file and row number without one.

    Raises:
        ValueError: no files, a missing column, a column of another type, more rows wanted than there are.
    """

    def __init__(self, data: DataParams) -> None:
        self.columns, self.class_names = data.parquet, data.class_names
        self.captioned = data.parquet.caption is not None
        self.files = parquet_files(data)
        for files in self.files.values():
            for file in files:
                self._check_columns(file)
        self.first = {split: [0, *accumulate(map(_rows, files))] for split, files in self.files.items()}
        super().__init__(data, {split: self._labels(split) for split in self.files})
        self.files.setdefault("validation", self.files["train"])
        self.first.setdefault("validation", self.first["train"])
        self.classes = [] if data.parquet.label is None else self._find_classes()

    def rows(self, split: str, part: int) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        places = self.numbers(split, part)
        while len(places):
            number = bisect_right(self.first[split], places[0]) - 1
            path, before = self.files[split][number], self.first[split][number]
            with _told(path), pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    after = before + file.metadata.row_group(group).num_rows
                    here = places[: np.searchsorted(places, after)]
                    if len(here):
                        table = file.read_row_group(group, self._names(file.schema_arrow)).take(pa.array(here - before))
                        yield from self._table(table, here - self.first[split][number], path)
                        places = places[len(here) :]
                    before = after

    def _names(self, schema: pa.Schema) -> list[str]:
        """Columns to read."""
        c = self.columns
        named = [name for name in (c.image, c.caption, c.label, c.class_name) if name is not None]
        return [*named, *({"key"} & set(schema.names))]

    def _table(self, table: pa.Table, numbers: np.ndarray, path: Path) -> Iterator[Row]:
        """Rows of a table that are the rows `numbers` of a file."""
        nothing = [None] * len(table)

        def column(name: str | None) -> list[Any]:
            return nothing if name is None or name not in table.column_names else table[name].to_pylist()

        c = self.columns
        named = [None if key is None else str(key) for key in column("key")]
        keys = named if "key" in table.column_names else [key_of(f"{path.stem}_{number:07d}") for number in numbers]
        parts = [column(name) for name in (c.image, c.caption, c.label, c.class_name)]
        for key, image, caption, label, class_name in zip(keys, *parts, strict=True):
            data = image["bytes"] if isinstance(image, dict) else image
            yield Row(key, data, caption, label, class_name, file=readable(str(path)))

    def _check_columns(self, file: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def is_image(kind: pa.DataType) -> bool:
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

        def is_text(kind: pa.DataType) -> bool:
            return pa.types.is_string(kind) or pa.types.is_large_string(kind)

        kinds = {
            "image": (is_image, "bytes, or structs with bytes"),
            "caption": (is_text, "text"),
            "label": (pa.types.is_integer, "whole numbers"),
            "class_name": (is_text, "text"),
        }
        with _told(file):
            schema = pq.read_schema(file)
        if "key" in schema.names and not (is_text(kind := schema.field("key").type) or pa.types.is_integer(kind)):
            raise ValueError(f"the column key of {file} must hold text or whole numbers, but is {kind}; give it another name.")
        for key, (test, kind) in kinds.items():
            name = getattr(self.columns, key)
            if name is None:
                continue
            if name not in schema.names:
                hint = "" if key == "image" else "; null does without"
                raise ValueError(f"data.parquet.{key}={name} is not a column of {file}; it has {', '.join(schema.names)}{hint}.")
            if not test(schema.field(name).type):
                raise ValueError(f"data.parquet.{key}={name} must hold {kind}, but is {schema.field(name).type} in {file}.")

    def _labels(self, split: str) -> np.ndarray:
        """Labels of all rows of a split, -1 where there is none."""
        import pyarrow as pa

        if self.columns.label is None:
            return np.full(self.first[split][-1], -1)
        tables = [_columns(file, [self.columns.label]) for file in self.files[split]]
        return np.concatenate([table[0].cast(pa.int64(), safe=False).fill_null(-1).to_numpy() for table in tables])

    def _find_classes(self) -> list[ClassInfo]:
        if self.class_names is not None:
            return [ClassInfo(name, {}) for name in listed_names(self.class_names)]
        written = [] if self.columns.class_name is not None else self._schema_names()
        if written:
            return [ClassInfo(name, {}) for name in written]
        counts = self._counts()
        classes: list[ClassInfo] = []
        while sum(counts.get(len(classes), {}).values()) >= 2:
            found = counts[len(classes)]
            classes.append(ClassInfo(min(found, key=lambda name: (-found[name], name)), {}))
        if not classes:
            folder = self.files["train"][0].parent
            raise ValueError(f"{self.columns.label} in {folder} is 0 on fewer than two training rows; labels count from 0.")
        return classes

    def _counts(self) -> dict[int, dict[str, int]]:
        """How often each training label comes with each name."""
        import pyarrow as pa

        names = [name for name in (self.columns.label, self.columns.class_name) if name is not None]
        table = pa.concat_tables([_columns(file, names) for file in self.files["train"]], promote_options="permissive")
        counts: dict[int, dict[str, int]] = {}
        for row in table.group_by(names).aggregate([([], "count_all")]).to_pylist():
            label = row[names[0]]
            name = f"class {label}" if len(names) == 1 else row[names[1]]
            if label is not None and name is not None:
                counts.setdefault(label, {})[name] = row["count_all"]
        return counts

    def _schema_names(self) -> list[str]:
        """Class names that `datasets` keeps with a column of labels, if it wrote the files."""
        import pyarrow.parquet as pq

        written = (pq.read_schema(self.files["train"][0]).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(written).get("info", {}).get("features", {})
        return features.get(self.columns.label, {}).get("names", [])
