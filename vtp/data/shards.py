"""Prepared pictures in tar files (the layout of WebDataset) with an index of byte ranges, so that any sample is one read away.

A split is `{split}-{i:05d}.tar`, two members a sample (`{key}.png` or `.jpg`, then `{key}.json`), `{split}.index.safetensors` and
`{split}.rows.parquet`. Samples are numbered through the tars in order.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtp.artifacts import MANIFEST, load_json, load_tensors, read_manifest

SPLITS = ("train", "validation")
HEADER = 512
"""Bytes of a tar member's header in the USTAR format, which every name that the contract lets pass fits."""
OPEN_FILES = 64
"""Tars that one process keeps open; a window of shards is far smaller, and the usual limit of a process is 1024."""


@dataclass(frozen=True)
class ClassInfo:
    """A class of the data: its name in words, and for rendered data the factors that make it (`{"colour": "red"}`)."""

    name: str
    factors: dict[str, Any]


def tar_name(split: str, shard: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:05d}.tar"


def write_shard(path: Path, samples: Iterable[tuple[str, str, bytes, dict[str, Any]]]) -> tuple[list[int], list[int]]:
    """Write samples (key, suffix of the image, its bytes, description) into a tar.

    Owners, times and modes are the same for every sample, so equal samples give equal files.

    Returns:
        Offsets and lengths, bytes within the tar, of the image members.
    """
    offsets, lengths = [], []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, suffix, image, about in samples:
            offsets.append(tar.offset + HEADER)
            lengths.append(len(image))
            text = json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
            for name, data in ((key + suffix, image), (key + ".json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return offsets, lengths


class Split:
    """Samples of one split, read from disk as they are asked for. Cheap to hand to other processes: they open it anew.

    Attributes:
        labels: (n) int64.
        shard_lengths: samples in each shard.
    """

    def __init__(self, folder: Path, name: str, image_size: int, index: dict[str, Tensor]) -> None:
        self.folder, self.name, self.image_size, self._index = folder, name, image_size, index
        self.labels = index["label"].to(torch.int64)
        self.shard_lengths: list[int] = torch.bincount(index["shard"]).tolist()
        self._places = [index[name].numpy() for name in ("shard", "offset", "length")]
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)

    @classmethod
    def open(cls, folder: Path, split: str) -> Split:
        """The split `split` of a folder of prepared data."""
        size = load_json(folder / MANIFEST)["image_size"]
        return cls(folder, split, size, load_tensors(folder / f"{split}.index.safetensors"))

    def __reduce__(self) -> tuple:
        return Split.open, (self.folder, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> Tensor:
        """Caption ids: (n, L) int64."""
        return self._index["tokens"].to(torch.int64)

    def caption(self, i: int) -> str:
        """Caption `i`, as written."""
        return self._captions[i].as_py()

    def image(self, i: int) -> Tensor:
        """Picture `i`: (3, S, S) uint8."""
        return torch.from_numpy(self._pixels(i)).permute(2, 0, 1).contiguous()

    def rows(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples (b) int64 as a batch: images (b, 3, S, S) uint8, tokens (b, L) int64, labels (b) int64."""
        pictures = np.empty((len(samples), self.image_size, self.image_size, 3), dtype=np.uint8)
        for row, sample in enumerate(samples.tolist()):
            pictures[row] = self._pixels(sample)
        return {
            "images": torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
            "tokens": self._index["tokens"][samples].to(torch.int64),
            "labels": self.labels[samples],
        }

    def _pixels(self, i: int) -> np.ndarray:
        shard, offset, length = (int(column[i]) for column in self._places)
        try:
            data = os.pread(self._file(shard), length, offset)
            if len(data) != length:
                raise OSError(f"the file ends {length - len(data)} bytes early")
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            pixels = np.array(image)
            if pixels.shape != (self.image_size, self.image_size, 3):
                raise OSError(f"shape {pixels.shape}")
        except Exception as error:  # decoders of corrupt bytes raise nearly anything
            raise ValueError(
                f"{self.folder / tar_name(self.name, shard)}: picture {self._column('key')[i]} cannot be read ({error}); "
                f"make {self.folder} anew with `dvc repro -f prepare`."
            ) from error
        return pixels

    def _column(self, name: str) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / f"{self.name}.rows.parquet", columns=[name])[name]

    @cached_property
    def _captions(self) -> Any:
        return self._column("caption")

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) == OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.folder / tar_name(self.name, shard), os.O_RDONLY)
        return self._files[shard]


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data."""

    classes: list[ClassInfo]
    image_size: int
    train: Split
    validation: Split

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """Both splits of a folder that `prepare` wrote; checks that its files are there with their sizes, not their checksums."""
        manifest = read_manifest(folder, verify=False)
        classes = [ClassInfo(**entry) for entry in load_json(folder / "classes.json")]
        train, validation = (Split.open(folder, split) for split in SPLITS)
        return cls(classes, manifest["image_size"], train, validation)
