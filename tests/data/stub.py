"""A small source of random pictures, and the parameters to prepare it with."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vtp.config import DataParams, ParquetColumns
from vtp.data.shards import ClassInfo
from vtp.data.sources import Row

CLASSES = [
    ClassInfo("red star", {"colour": "red"}),
    ClassInfo("blue disc", {"colour": "blue"}),
    ClassInfo("red disc", {"colour": "red"}),
]
DATA = DataParams("parquet", None, None, None, 16, 8, 6, 0.5, ParquetColumns("image", "caption", "label", "class_name"))


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
    """`changes` replaces fields of single rows: {("train", 3): {"caption": " "}}."""

    lengths: dict[str, int]
    changes: dict[tuple[str, int], dict[str, object]]

    def classes(self) -> list[ClassInfo]:
        return CLASSES

    def length(self, split: str) -> int:
        return self.lengths[split]

    def rows(self, split: str, start: int, stop: int) -> Iterator[Row]:
        for i in range(start, stop):
            yield replace(good_row(split, i), **self.changes.get((split, i), {}))  # type: ignore[arg-type]


def stub(train: int = 20, validation: int = 8, changes: dict[tuple[str, int], dict[str, object]] | None = None) -> Stub:
    return Stub({"train": train, "validation": validation}, changes or {})
