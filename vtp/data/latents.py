"""Latents of a whole data set on disk, in the layout that LightningDiT reads (arXiv 2501.01423).

A folder holds `latents_rank%02d_shard%03d.safetensors` with `latents` and `latents_flip` (n, C, h, w) float32, the second of the
mirrored pictures, and `labels` (n) int64; samples are numbered through the files in the order of their names. Beside them lie the
channel statistics, twice: `latents_stats.pt` for public readers, and `latents_stats.st`, a safetensors file, for this one. Public
readers take every `*.safetensors` for a shard, hence the suffix.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vtp import dist, seeding
from vtp.artifacts import aside, load_pickled, load_tensors, numbered, save_tensors
from vtp.data.order import Order

log = logging.getLogger(__name__)

STATISTICS = "latents_stats.st"
PUBLIC_STATISTICS = "latents_stats.pt"
AHEAD = 2
"""Batches read in the background while one is used."""


@dataclass(frozen=True)
class Shard:
    """One file, mapped into memory: latents and flipped (n, C, h, w), labels (n) int64."""

    latents: Tensor
    flipped: Tensor
    labels: Tensor


def _open_shards(folder: Path) -> list[Shard]:
    shards: list[Shard] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, "pt") as file:
                shard = Shard(*(file.get_tensor(name) for name in ("latents", "latents_flip", "labels")))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a whole shard of latents ({error}); make {folder} anew.") from None
        if shards and shard.latents.shape[1:] != shards[0].latents.shape[1:]:
            shapes = f"{tuple(shard.latents.shape[1:])}, not {tuple(shards[0].latents.shape[1:])}"
            raise ValueError(f"{path} holds latents of {shapes} like the shards before; make {folder} anew.")
        shards.append(shard)
    if not shards:
        raise ValueError(f"{folder} holds no shards of latents; make them with `dvc repro extract_latents`.")
    return shards


def _channel_statistics(shards: Sequence[Shard], most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation (1, C, 1, 1) over all positions of at most `most` latents, evenly spread."""
    total = sum(len(shard.labels) for shard in shards)
    count = min(most, total)
    edges = torch.arange(count + 1) * total // count  # one sample from each stretch between two edges
    inside = torch.rand(count, generator=seeding.generator(seed, "latent statistics"), dtype=torch.float64)
    picked = edges[:-1] + (inside * edges.diff()).long()
    sums = torch.zeros(shards[0].latents.shape[1], dtype=torch.float64)
    squares, first = torch.zeros_like(sums), 0
    for shard in shards:
        here = picked[(picked >= first) & (picked < first + len(shard.labels))] - first
        for rows in here.split(512):
            latents = shard.latents[rows].double()
            sums, squares = sums + latents.sum((0, 2, 3)), squares + latents.square().sum((0, 2, 3))
        first += len(shard.labels)
    numbers = count * shards[0].latents[0, 0].numel()
    mean = sums / numbers
    std = ((squares - numbers * mean.square()) / (numbers - 1)).clamp(min=0).sqrt()
    varies = std > 1e-6 * mean.abs()  # false for NaN, too
    if not varies.all():
        channel = int((~varies).nonzero()[0])
        raise ValueError(f"channel {channel} of the latents is constant or not finite; train the tokenizer anew.")
    return mean.reshape(1, -1, 1, 1), std.reshape(1, -1, 1, 1)


def load_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, C, 1, 1) float32 that latents are normalised with: (latent - mean) / std.

    Args:
        path: a folder of latents or of a diffusion transformer, or a file of statistics. Those from elsewhere are pickled; they
            are read as tensors, never run.

    Raises:
        ValueError: nothing there, a cut file, a file with other contents, or a deviation that is not positive.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in (STATISTICS, PUBLIC_STATISTICS) if (path / name).exists()]
        if not found:
            raise ValueError(f"{path} holds neither {STATISTICS} nor {PUBLIC_STATISTICS}, the channels' mean and deviation.")
        file = found[0]
    content = load_tensors(file) if file.suffix in (".st", ".safetensors") else load_pickled(file)
    if not isinstance(content, Mapping) or not all(isinstance(content.get(name), Tensor) for name in ("mean", "std")):
        raise ValueError(f"{file} does not hold the tensors `mean` and `std`.")
    mean, std = (content[name].float().reshape(1, -1, 1, 1) for name in ("mean", "std"))
    if mean.shape != std.shape or not (std > 0).all() or not mean.isfinite().all():
        raise ValueError(f"{file}: mean and std must be as long as each other, finite, and std positive.")
    return mean, std


def carries_statistics(path: Path) -> bool:
    """Whether statistics lie in a folder, of latents or beside a diffusion transformer."""
    return any((path / name).is_file() for name in (STATISTICS, PUBLIC_STATISTICS))


def own_statistics(path: Path | None) -> Path | None:
    """`path` if it is a folder that carries statistics of its own, else None."""
    if path is None or carries_statistics(path):
        return path
    log.info("%s carries no statistics of latents; those of this pipeline's are taken", path)
    return None


def copy_latents(source: Path, folder: Path, *, channels: int, num_classes: int) -> None:
    """Copy the shards of a folder from elsewhere, and its statistics in both forms, into `folder`.

    Args:
        channels: of the tokenizer that will decode what is painted in these latents.
        num_classes: classes there are; labels must stay below.

    Raises:
        ValueError: `source` holds no shards, a broken one, no statistics, other channels or labels.
    """
    store = LatentStore.open(source)
    if store.shape[0] != channels:
        raise ValueError(f"{source} holds latents of {store.shape[0]} channels, the tokenizer of this pipeline makes {channels}.")
    if not 0 <= store.labels.min() <= store.labels.max() < num_classes:
        odd = int(store.labels.max() if store.labels.max() >= num_classes else store.labels.min())
        raise ValueError(f"{source} holds the label {odd}; the prepared data has classes 0 to {num_classes - 1}.")
    for path in sorted(source.glob("*.safetensors")):
        with aside(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    save_statistics(folder, store.mean, store.std)


def save_statistics(folder: Path, mean: Tensor, std: Tensor) -> None:
    """Write both files of the statistics (1, C, 1, 1) into `folder`: for public readers, and the one that is read here."""
    found = {"mean": mean.float().reshape(1, -1, 1, 1), "std": std.float().reshape(1, -1, 1, 1)}
    save_tensors(folder / STATISTICS, found)
    # Given a path, torch.save would write the name of the temporary file into the archive.
    with aside(folder / PUBLIC_STATISTICS) as temporary, temporary.open("wb") as file:
        torch.save(found, file)


class LatentWriter:
    """Writes latents as they are computed, a file at a time, the same bytes for the same latents.

    Every rank writes files of its own. Where rank r appends the r-th contiguous part of the data, the order of the samples, and
    with it everything drawn from it, is the same for any number of ranks.

    Args:
        folder: created; holds no shards yet.
        shard_samples: samples of a full file.

    Raises:
        ValueError: the folder holds shards already.
    """

    def __init__(self, folder: Path, *, shard_samples: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} holds shards of latents already; delete them first.")
        dist.barrier()  # no rank writes before all have looked
        self.folder, self.shard_samples = folder, shard_samples
        self._buffers: dict[str, Tensor] = {}
        self._filled = self._shards = 0

    def append(self, latents: Tensor, flipped: Tensor, labels: Tensor) -> None:
        """Add latents and those of the mirrored pictures (b, C, h, w) with labels (b); any device and float type."""
        new = {"latents": latents, "latents_flip": flipped, "labels": labels}
        if not self._buffers:
            types = {"latents": torch.float32, "latents_flip": torch.float32, "labels": torch.int64}
            self._buffers = {key: torch.empty(self.shard_samples, *new[key].shape[1:], dtype=types[key]) for key in new}
        done = 0
        while done < len(labels):
            fits = min(self.shard_samples - self._filled, len(labels) - done)
            for key, value in new.items():
                self._buffers[key][self._filled : self._filled + fits] = value[done : done + fits]
            done, self._filled = done + fits, self._filled + fits
            if self._filled == self.shard_samples:
                self._cut()

    def finish(self, *, statistics_samples: int, seed: int) -> None:
        """Write what is left, and the channel statistics over at most `statistics_samples` un-flipped latents of all ranks.

        Raises:
            ValueError: no rank has written anything, or a channel is constant.
        """
        if self._filled:
            self._cut()
        self._buffers = {}
        dist.barrier()
        if dist.is_main():
            save_statistics(self.folder, *_channel_statistics(_open_shards(self.folder), statistics_samples, seed))
        dist.barrier()

    def _cut(self) -> None:
        tensors = {key: buffer[: self._filled] for key, buffer in self._buffers.items()}
        about = {"total_size": str(self._filled), "dtype": str(torch.float32), "device": "cpu"}
        file = self.folder / f"latents_rank{dist.rank():02d}_shard{self._shards:03d}.safetensors"
        with aside(file) as temporary:
            with numbered(file):
                safetensors.torch.save_file(tensors, temporary, about)
            _sort_header(temporary)
        self._filled, self._shards = 0, self._shards + 1


def _sort_header(path: Path) -> None:
    """Bring the keys of a safetensors header into a fixed order: the library writes metadata in the random order of a hash."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(size)), sort_keys=True, separators=(",", ":")).encode().ljust(size)
        assert len(header) == size
        file.seek(8)
        file.write(header)


class LatentStore:
    """Latents on disk, read as they are asked for.

    Attributes:
        mean, std: (1, C, 1, 1) float32.
        shape: (C, h, w).
        labels: (n) int64, of all samples.
        shard_lengths: samples in each file.
    """

    def __init__(self, shards: Sequence[Shard], mean: Tensor, std: Tensor) -> None:
        self._shards, self.mean, self.std = shards, mean, std
        channels, height, width = shards[0].latents.shape[1:]
        self.shape = (channels, height, width)
        self.labels = torch.cat([shard.labels for shard in shards])
        self.shard_lengths = [len(shard.labels) for shard in shards]
        self._first = torch.tensor([0, *accumulate(self.shard_lengths)])

    @classmethod
    def open(cls, folder: Path, statistics: Path | None = None) -> LatentStore:
        """The latents of a folder, from here or from elsewhere.

        Args:
            statistics: normalise with these, a file or a folder, in place of the folder's own.

        Raises:
            ValueError: no shards, a broken one, or no statistics for as many channels.
        """
        shards = _open_shards(folder)
        mean, std = load_statistics(statistics or folder)
        channels = shards[0].latents.shape[1]
        if mean.shape[1] != channels:
            raise ValueError(
                f"{statistics or folder} has statistics of {mean.shape[1]} channels, {folder} latents of {channels}."
            )
        return cls(shards, mean, std)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        """Samples `indices` (b) int64, of the mirrored picture where `flip` (b) bool.

        Returns:
            Normalised latents (b, C, h, w) float32, labels (b) int64.
        """
        shards = torch.bucketize(indices, self._first[1:], right=True)
        latents = torch.empty(len(indices), *self.shape)
        for number in shards.unique().tolist():
            shard = self._shards[number]
            for source, chosen in ((shard.latents, ~flip), (shard.flipped, flip)):
                rows = ((shards == number) & chosen).nonzero().squeeze(1)
                latents[rows] = source[indices[rows] - self._first[number]].float()
        return latents.sub_(self.mean).div_(self.std), self.labels[indices]


class LatentBatches:
    """This rank's rows of the global batch of each step: a new permutation of all samples every epoch, one half flipped.

    The whole is shuffled, not windows of files: rows are one cheap read each, and public shards are sorted by class.

    Args:
        store: the samples.
        batch: latents of a global batch; divides over the ranks.
        seed: the run's seed, which fixes order and flips.
    """

    def __init__(self, store: LatentStore, batch: int, seed: int) -> None:
        self.store, self.batch, self.seed = store, batch, seed
        self.rows = dist.rows(batch)
        self.order = Order(store.shard_lengths, seed, len(store.shard_lengths))

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        """Batches of steps [start, stop): latents (b, C, h, w) float32, normalised, and labels (b) int64; b = batch / ranks."""
        with ThreadPoolExecutor(1) as reader:
            ahead = deque(reader.submit(self._read, step) for step in range(start, min(start + AHEAD, stop)))
            for step in range(start, stop):
                if step + AHEAD < stop:
                    ahead.append(reader.submit(self._read, step + AHEAD))
                yield ahead.popleft().result()

    def _read(self, step: int) -> dict[str, Tensor]:
        first = step * self.batch
        indices = self.order.positions(first + self.rows.start, first + self.rows.stop)
        flip = seeding.Draws(self.seed, step).uniform("flip latents", self.batch) < 0.5
        latents, labels = self.store.read(indices, flip)
        return {"latents": latents, "labels": labels}
