"""A small source of random pictures, and the parameters to prepare it with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vtp.config_data import DataParams, ParquetColumns, WebDatasetMembers
from vtp.data.prepare import How
from vtp.data.shards import ClassInfo
from vtp.data.sources import Row
from vtp.data.sources.base import Scope

CLASSES = [
    ClassInfo("red star", {"colour": "red"}),
    ClassInfo("blue disc", {"colour": "blue"}),
    ClassInfo("red disc", {"colour": "red"}),
]
DATA = DataParams(
    source="parquet",
    path=None,
    validation_path=None,
    class_names=None,
    templates=(),
    validation_labels=None,
    train_samples=None,
    validation_samples=None,
    image_size=16,
    store_size=None,
    context_length=8,
    mode="copy",
    deep_check=False,
    duplicate_bits=None,
    shard_samples=6,
    max_bad_fraction=0.5,
    parquet=ParquetColumns("image", "caption", "label", "class_name"),
    webdataset=WebDatasetMembers("txt", None),
)
ONE = How(workers=1)


def png(pixels: np.ndarray, format: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def pixels(*key: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def good_row(split: str, i: int) -> Row:
    label = i % 3
    image = png(pixels(split == "train", i))
    return Row(
        f"{split}_{i}", image, f" a {CLASSES[label].name} no {i} ", label, CLASSES[label].name, dict(CLASSES[label].factors)
    )


@dataclass
class Stub:
    """Parts of six rows. `changes` replaces fields of single rows: {("train", 3): {"caption": " "}}."""

    lengths: dict[str, int]
    changes: dict[tuple[str, int], dict[str, object]]
    captioned: bool = True
    keys_apart: Scope = "all"

    def __post_init__(self) -> None:
        self.classes = CLASSES

    def parts(self, split: str) -> int:
        return -(-self.lengths[split] // 6)

    def tar(self, split: str, part: int) -> None:
        return None

    def rows(self, split: str, part: int) -> Iterator[Row]:
        for i in range(6 * part, min(6 * part + 6, self.lengths[split])):
            yield replace(good_row(split, i), **self.changes.get((split, i), {}))  # type: ignore[arg-type]


def stub(train: int = 20, validation: int = 8, changes: dict[tuple[str, int], dict[str, object]] | None = None) -> Stub:
    return Stub({"train": train, "validation": validation}, changes or {})
