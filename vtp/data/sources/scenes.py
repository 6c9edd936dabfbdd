"""Pictures rendered here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vtp.config import DataParams
from vtp.data.shards import ClassInfo
from vtp.data.sources.base import Row, Scope


class Scenes:
    """Pictures rendered here, as PNG: row i of a split is a function of (seed, split, i)."""

    captioned = True
    keys_apart: Scope = "all"

    def __init__(self, data: DataParams, seed: int) -> None:
        from vtp.data import scenes

        self.seed, self.image_size, self.samples = seed, data.image_size, data.shard_samples
        self.lengths = {"train": data.train_samples or 0, "validation": data.validation_samples or 0}
        self.classes = [ClassInfo(name, dict(factors)) for name, factors in scenes.CLASSES]

    def parts(self, split: str) -> int:
        return -(-self.lengths[split] // self.samples)

    def tar(self, split: str, part: int) -> None:
        """No part is a tar."""

    def rows(self, split: str, part: int) -> Iterator[Row]:
        from PIL import Image

        from vtp.data import pictures, scenes

        for i in range(part * self.samples, min((part + 1) * self.samples, self.lengths[split])):
            scene = scenes.render(self.seed, split, i, self.image_size)
            image = pictures.encode(Image.fromarray(np.asarray(scene.picture)))
            name = scenes.CLASSES[scene.label][0]
            yield Row(f"{split}_{i:07d}", image, scene.caption, int(scene.label), name, dict(scene.factors))
