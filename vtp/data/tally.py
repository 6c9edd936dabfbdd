"""What a split holds, counted shard by shard: sizes, caption lengths, classes, levels of the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MOST_SIDE = 4096
"""Short sides from here on are counted as one."""
SHAPES = 41
"""Bins of the aspect: log2(width / height) from -4 to 4."""


@dataclass
class Tally:
    """Counts of the good rows of a shard or a split, int64.

    Attributes:
        rows: of the source, broken ones included: (1).
        broken: rows put aside: (1).
        caption_ids: pictures by the number of ids of their caption: (L + 1).
        classes: pictures by label: (C).
        short_sides: pictures by short side as they came, in pixels: (`MOST_SIDE` + 1).
        shapes: pictures by aspect: (`SHAPES`).
        levels: pixels of the pictures by channel and level: (3, 256); zeros if nothing was decoded.
    """

    rows: np.ndarray
    broken: np.ndarray
    caption_ids: np.ndarray
    classes: np.ndarray
    short_sides: np.ndarray
    shapes: np.ndarray
    levels: np.ndarray

    @classmethod
    def empty(cls, context_length: int, classes: int) -> Tally:
        """Nothing counted yet."""
        shapes = (1, 1, context_length + 1, classes, MOST_SIDE + 1, SHAPES, (3, 256))
        return cls(*(np.zeros(shape, dtype=np.int64) for shape in shapes))

    def count(self, frame: pd.DataFrame, levels: Sequence[np.ndarray | None], *, rows: int) -> None:
        """Count good rows of a shard.

        Args:
            frame: caption_ids, label, short_side, height and width of the good ones.
            levels: of the good ones, (3, 256) each.
            rows: good and bad.
        """
        self.rows += rows
        self.broken += rows - len(frame)
        for name, counts in (("caption_ids", self.caption_ids), ("label", self.classes), ("short_side", self.short_sides)):
            values = np.minimum(frame[name].to_numpy(np.int64, na_value=0), len(counts) - 1)
            counts += np.bincount(values, minlength=len(counts))
        width, height = (frame[name].to_numpy(float) for name in ("width", "height"))
        shapes = np.rint((np.log2(width / height) + 4) / 8 * (SHAPES - 1)).astype(np.int64)
        self.shapes += np.bincount(np.clip(shapes, 0, SHAPES - 1), minlength=SHAPES)
        for one in levels:
            if one is not None:
                self.levels += one

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        np.savez(path, **{part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def total(cls, paths: Iterable[Path]) -> Tally:
        """The sum of what `save` wrote; at least one file."""
        found: Tally | None = None
        for path in paths:
            with np.load(path) as file:
                if found is None:
                    found = cls(**dict(file))
                else:
                    for part in fields(cls):
                        getattr(found, part.name)[...] += file[part.name]
        assert found is not None
        return found

    def facts(self) -> dict[str, Any]:
        """Counts and quantiles in plain numbers."""
        pictures = int(self.short_sides.sum())
        return {
            "rows": int(self.rows[0]),
            "pictures": pictures,
            "broken_rows": int(self.broken[0]),
            "caption_ids": quantiles(self.caption_ids),
            "captions_filling_context": float(self.caption_ids[-1] / pictures),
            "short_side": quantiles(self.short_sides),
            "pictures_per_class": {
                "least": int(self.classes.min(initial=pictures)),
                "most": int(self.classes.max(initial=0)),
                "all": self.classes.tolist(),
            },
            "counts": {
                "caption_ids": self.caption_ids.tolist(),
                "short_side": self.short_sides[: np.flatnonzero(self.short_sides).max(initial=0) + 1].tolist(),
                "shape": self.shapes.tolist(),
            },
        }

    @property
    def short_side(self) -> int:
        """Median of the short sides, pixels."""
        return int(quantiles(self.short_sides)["q50"])

    def channels(self) -> dict[str, list[float] | None]:
        """Mean and standard deviation of each channel, pixels in [0, 1]; None if nothing was decoded."""
        pixels = self.levels.sum(1)
        if not pixels.all():
            return {"channel_mean": None, "channel_std": None}
        scale = np.arange(256) / 255
        mean = self.levels @ scale / pixels
        variance = self.levels @ scale**2 / pixels - mean**2
        return {"channel_mean": mean.round(6).tolist(), "channel_std": np.sqrt(variance).round(6).tolist()}


def quantiles(counts: np.ndarray) -> dict[str, float]:
    """Least, most, median and the 5 % and 95 % points of whole numbers by their counts."""
    shares = (0, 0.05, 0.5, 0.95, 1)
    found = np.quantile(np.arange(len(counts)), shares, weights=counts, method="inverted_cdf")
    return {f"q{100 * share:02.0f}": float(value) for share, value in zip(shares, found, strict=True)}
