"""Data sets to measure with: JPEGs whose size and spectrum are a photograph's, in the layout that `prepare` writes.

A picture is noise with the spectrum of natural scenes, amplitude falling with one over the frequency (Field 1987), and a little
grain. Some hundred different ones are drawn and encoded; a data set repeats their bytes, which costs a decoder the same.
"""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vtp.artifacts import save_json, save_tensors
from vtp.data.shards import Tar, index_name, tar_name, write_shard

CONTRAST, GRAIN = 48.0, 3.0
"""Standard deviations of the picture and of its grain, in levels of 256."""

CONTEXT = 77


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    """A random picture (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = np.fft.rfft2(rng.normal(size=(3, height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    scene = np.fft.irfft2(noise / frequency, s=(height, width))
    scene = scene / scene.std((1, 2), keepdims=True)
    grey = scene[:1]  # channels of photographs go together
    levels = 128 + CONTRAST * (0.9 * grey + 0.4 * scene) + GRAIN * rng.normal(size=scene.shape)
    return levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def jpeg(seed: int, *, height: int, width: int, quality: int) -> bytes:
    """A random picture as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def jpegs(count: int, height: int, width: int, *, quality: int = 90) -> list[bytes]:
    """`count` different pictures, made by all cores."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(jpeg, height=height, width=width, quality=quality), range(count), chunksize=8))


def write(folder: Path, pool: list[bytes], *, shards: int, samples: int, image_size: int, store_size: int) -> None:
    """A training split of `shards` x `samples` pictures, with captions of random ids; there is no validation split."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor() as workers:
        entries = list(workers.map(partial(_write_shard, folder, pool, samples), range(shards), chunksize=4))
    save_json(folder / "train.shards.json", [asdict(entry) for entry in entries])
    save_json(folder / "manifest.json", {"image_size": image_size, "store_size": store_size, "files": {}})


def _write_shard(folder: Path, pool: list[bytes], samples: int, shard: int) -> Tar:
    images = list(islice(cycle(pool[shard % len(pool) :] + pool[: shard % len(pool)]), samples))
    path = folder / tar_name("train", shard)
    offsets, lengths = write_shard(path, ((f"{shard}_{i}", ".jpg", image, {}) for i, image in enumerate(images)))
    sizes = {image: Image.open(io.BytesIO(image)).size for image in set(images)}
    tokens = torch.randint(1, 49405, (samples, CONTEXT), generator=torch.Generator().manual_seed(shard), dtype=torch.int32)
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    columns = {
        "offset": torch.tensor(offsets),
        "length": torch.tensor(lengths, dtype=torch.int32),
        "width": torch.tensor([sizes[image][0] for image in images], dtype=torch.int32),
        "height": torch.tensor([sizes[image][1] for image in images], dtype=torch.int32),
        "label": torch.arange(samples, dtype=torch.int32) % 1000,
        "tokens": tokens,
    }
    save_tensors(folder / index_name("train", shard), columns)
    return Tar(path.name, samples, path.stat().st_size)
