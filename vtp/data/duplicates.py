"""Pictures and keys met twice, in eight bytes each: equal pixels, pictures that look alike, keys of different files.

Perceptual hashes are imagehash's 64-bit phash: the signs of the low frequencies of the picture at 32 x 32 pixels. Pictures
without structure (one flat colour, say) all look alike to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

BUCKETS = 64
"""Files over which keys are spread, so that one at a time is looked at: a 64th of the keys must fit into memory."""
ROWS = 2**22
"""Pairs of hashes that are compared at once."""
ADDRESS = np.dtype([("hash", "<u8"), ("part", "<u4"), ("row", "<u4")])


@dataclass(frozen=True)
class Seen:
    """Hashes of the validation split that training rows are held against, (n) uint64 each; `looks` may be empty."""

    keys: np.ndarray
    images: np.ndarray
    looks: np.ndarray

    def save(self, path: Path) -> None:
        """Write a .npz file."""
        np.savez(path, keys=self.keys, images=self.images, looks=self.looks)

    @classmethod
    def load(cls, path: Path) -> Seen:
        """Read what `save` wrote."""
        with np.load(path) as file:
            return cls(file["keys"], file["images"], file["looks"])


def text_hash(text: str) -> int:
    """64 bits of a key's sha256."""
    return bytes_hash(text.encode())


def bytes_hash(*parts: bytes) -> int:
    """64 bits of the sha256 over some bytes."""
    summed = hashlib.sha256()
    for part in parts:
        summed.update(part)
    return int.from_bytes(summed.digest()[:8], "little")


def pixel_hash(image: Image.Image) -> int:
    """64 bits of the sha256 over size and pixels of an RGB picture."""
    return bytes_hash(b"%d %d " % image.size, image.tobytes())


def look_hash(image: Image.Image) -> int:
    """The perceptual hash of a picture: 64 bits, few of which differ between pictures that look alike."""
    import imagehash

    bits = np.packbits(imagehash.phash(image).hash.reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def alike(looks: np.ndarray, others: np.ndarray, most_bits: int) -> np.ndarray:
    """Which of some perceptual hashes (n) uint64 differ from one of `others` in `most_bits` bits at most: (n) bool."""
    found = np.zeros(len(looks), dtype=bool)
    if len(others):
        step = max(1, ROWS // len(others))
        for start in range(0, len(looks), step):
            differing = np.bitwise_count(looks[start : start + step, None] ^ others)
            found[start : start + step] = (differing <= most_bits).any(1)
    return found


def repeated(parts: Iterable[tuple[int, np.ndarray, np.ndarray]], folder: Path) -> Iterator[tuple[int, int]]:
    """Rows whose key an earlier row has: (part, row), parts and rows counted as they came.

    Args:
        parts: number, key hashes (n) uint64 and row numbers (n) of each part; consumed as they come.
        folder: for temporary files, 16 bytes a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"keys-{bucket:02d}" for bucket in range(BUCKETS)]
    with ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(path.open("wb")) for path in paths]
        for number, hashes, rows in parts:
            addresses = np.empty(len(hashes), ADDRESS)
            addresses["hash"], addresses["part"], addresses["row"] = hashes, number, rows
            buckets = hashes % np.uint64(BUCKETS)
            for bucket in np.unique(buckets).tolist():
                files[bucket].write(addresses[buckets == bucket].tobytes())
    for path in paths:
        found = np.sort(np.fromfile(path, ADDRESS), order=("hash", "part", "row"))
        again = found[1:][found["hash"][1:] == found["hash"][:-1]]
        yield from zip(again["part"].tolist(), again["row"].tolist(), strict=True)
        path.unlink()
