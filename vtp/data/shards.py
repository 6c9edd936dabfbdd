"""Prepared pictures in tar files (the layout of WebDataset) with an index of byte ranges, so that any sample is one read away.

A split has, for each shard i, `{split}-{i:05d}.tar`, two members a sample (`{key}.png` or `.jpg`, then `{key}.json`), and
`{split}-{i:05d}.index.safetensors`: offset (bytes, int64), length (bytes, int32), height and width (pixels, int32), label (int32,
0 where the data has none) and tokens (n, L) int32 of its samples. `{split}.shards.json` lists the shards (see `Tar`): a tar may
lie elsewhere. `{split}.rows.parquet` holds keys, captions and what else is known in words, a row group for each shard that has
samples. Samples are numbered through the shards in order.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import tarfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtp.artifacts import MANIFEST, load_json, load_tensors, read_manifest
from vtp.data.decode import square
from vtp.data.remote import is_remote, local_copy

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")
HEADER = 512
"""Bytes of a tar member's header in the USTAR format, which every name that the contract lets pass fits."""
COPIES = 5
"""Times that a tar is fetched: in a narrow cache another process may delete a copy before it is opened here."""
OPEN_SHARDS = 64
"""Shards that one process keeps open; a window of shards is far smaller, and the usual limit of a process is 1024 files."""


@dataclass(frozen=True)
class ClassInfo:
    """A class of the data: its name in words, and for rendered data the factors that make it (`{"colour": "red"}`)."""

    name: str
    factors: dict[str, Any]


def tar_name(split: str, shard: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:05d}.tar"


def index_name(split: str, shard: int) -> str:
    """File name of a shard's index."""
    return f"{split}-{shard:05d}.index.safetensors"


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


@dataclass(frozen=True)
class Tar:
    """A shard: its tar (a path, relative to the folder of the prepared data, or a URL), good samples, size in bytes if known."""

    tar: str
    samples: int
    bytes: int | None


@dataclass(frozen=True)
class Scratch:
    """Where reading leaves what it finds and fetches.

    Attributes:
        notes: a file in which pictures that cannot be decoded are listed as they are met.
        cache: a folder for copies of tars that lie elsewhere.
        cache_bytes: of all copies together.
    """

    notes: Path
    cache: Path
    cache_bytes: int

    @classmethod
    def of(cls, work: Path, cache_gigabytes: float) -> Scratch:
        """For a run whose folder is `work`, runs/<stage>/<fingerprint>; all runs share one cache."""
        return cls(work / "undecodable.txt", work.parents[1] / "cache", int(cache_gigabytes * 1e9))


class _Open(NamedTuple):
    """A shard at hand: its tar's descriptor, and its index mapped into memory, so that processes share its pages."""

    file: int
    columns: dict[str, np.ndarray]


class Split:
    """Samples of one split, read from disk as they are asked for. Cheap to hand to other processes: they open it anew.

    A picture that cannot be decoded keeps its place: the next good one of its shard, with its caption and label, stands in,
    the same one wherever and whenever it is asked for. It is logged once, and listed in the notes.

    Args:
        scratch: None: nothing is listed, and no tar may lie elsewhere.

    Attributes:
        shard_lengths: samples in each shard.
        image_size: side in pixels of the squares that models see.
        store_size: side of the squares that training batches hold, from which views are cropped.
    """

    def __init__(self, folder: Path, name: str, scratch: Scratch | None = None) -> None:
        self.folder, self.name, self.scratch = folder, name, scratch
        manifest = load_json(folder / MANIFEST)
        self.image_size: int = manifest["image_size"]
        self.store_size: int = manifest["store_size"]
        self.tars = [Tar(**entry) for entry in load_json(folder / f"{name}.shards.json")]
        self.shard_lengths = [entry.samples for entry in self.tars]
        self._first = np.cumsum([0, *self.shard_lengths])
        self._open: dict[int, _Open] = {}
        weakref.finalize(self, _close, self._open)

    def __reduce__(self) -> tuple:
        return Split, (self.folder, self.name, self.scratch)

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def labels(self) -> Tensor:
        """(n) int64."""
        return self._all("label")

    @cached_property
    def tokens(self) -> Tensor:
        """Caption ids: (n, L) int64."""
        return self._all("tokens")

    def caption(self, i: int) -> str:
        """Caption `i`, as written; empty where there is none."""
        return self._text(*self._place(i), "caption") or ""

    def image(self, i: int) -> Tensor:
        """Picture `i`: (3, S, S) uint8, S = `image_size`."""
        return self.rows(torch.tensor([i]))["images"][0]

    def rows(self, samples: Tensor, side: int | None = None) -> dict[str, Tensor]:
        """Samples (b) int64 as a batch: images (b, 3, S, S) uint8, tokens (b, L) int64, labels (b) int64.

        Args:
            side: S, of the squares cut from the middle of the pictures; None: `image_size`.

        Raises:
            ValueError: a shard is gone or has changed, or nothing in it can be decoded.
        """
        size = side or self.image_size
        images = torch.empty(len(samples), 3, size, size, dtype=torch.uint8)
        tokens, labels = [], []
        for row, sample in enumerate(samples.tolist()):
            shard, place = self._place(sample)
            place = self._decode(shard, place, images[row])
            columns = self._at_hand(shard).columns
            tokens.append(columns["tokens"][place])
            labels.append(columns["label"][place])
        return {
            "images": images,
            "tokens": torch.from_numpy(np.array(tokens, dtype=np.int64)),
            "labels": torch.from_numpy(np.array(labels, dtype=np.int64)),
        }

    def fetch(self, shard: int) -> None:
        """Make sure that a shard's tar is on this machine, before it is needed."""
        self._path(shard)

    @property
    def remote(self) -> bool:
        """Whether some tars lie elsewhere."""
        return any(is_remote(entry.tar) for entry in self.tars)

    def _place(self, sample: int) -> tuple[int, int]:
        """Shard of a sample, and its place in it."""
        shard = int(np.searchsorted(self._first, sample, side="right")) - 1
        return shard, sample - int(self._first[shard])

    def _decode(self, shard: int, place: int, out: Tensor) -> int:
        """Decode a sample of a shard, or the next good one after it, into out; the place of the one it is."""
        samples = self.shard_lengths[shard]
        for step in range(samples):
            shown = (place + step) % samples
            file, columns = self._at_hand(shard)
            length = int(columns["length"][shown])
            try:
                data = os.pread(file, length, int(columns["offset"][shown]))
                square(data, int(min(columns["height"][shown], columns["width"][shown])), out)
                return shown
            except OSError as error:
                raise ValueError(f"{self.tars[shard].tar} cannot be read ({error.strerror}).") from error
            except ValueError as error:
                self._note(shard, shown, str(error))
        raise ValueError(f"{self.tars[shard].tar}: none of its {samples} pictures can be decoded; make {self.folder} anew.")

    def _note(self, shard: int, place: int, reason: str) -> None:
        """Log and list a picture that cannot be decoded, once."""
        tar, key = self.tars[shard].tar, self._text(shard, place, "key")
        if self.scratch is None or append_once(self.scratch.notes, f"{tar}\t{key}\n"):
            log.warning("%s: picture %s cannot be decoded (%s); the next of its shard stands in", tar, key, reason)

    def _at_hand(self, shard: int) -> _Open:
        if shard not in self._open:
            if len(self._open) == OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))).file)
            columns = load_tensors(self.folder / index_name(self.name, shard))
            self._open[shard] = _Open(self._file(shard), {name: column.numpy() for name, column in columns.items()})
        return self._open[shard]

    def _file(self, shard: int) -> int:
        size = self.tars[shard].bytes
        for _ in range(COPIES if is_remote(self.tars[shard].tar) else 1):
            path = self._path(shard)
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY)
                break
        else:
            raise ValueError(f"{path} is gone since {self.folder} was made; bring it back, or run prepare anew.")
        if size not in (None, os.fstat(file).st_size):
            os.close(file)
            raise ValueError(f"{path} has not the {size} bytes with which {self.folder} was made; run prepare anew.")
        return file

    def _path(self, shard: int) -> Path:
        """Of a shard's tar on this machine; one that lies elsewhere is fetched."""
        place = self.tars[shard].tar
        if not is_remote(place):
            return self.folder / place
        if self.scratch is None:
            raise ValueError(f"{place} lies elsewhere, and there is no folder to copy it to.")
        try:
            return local_copy(place, self.scratch.cache, self.scratch.cache_bytes)
        except OSError as error:
            raise ValueError(f"{place} cannot be fetched ({error}); bring it back, or run prepare anew.") from error

    def _all(self, name: str) -> Tensor:
        """A column of the whole split."""
        parts = [load_tensors(self.folder / index_name(self.name, shard))[name] for shard in range(len(self.tars))]
        return torch.cat(parts).to(torch.int64)

    def _text(self, shard: int, place: int, column: str) -> str:
        """A cell of the table of rows; a shard with samples is one row group of it."""
        group = sum(length > 0 for length in self.shard_lengths[:shard])
        if group not in self._texts:
            self._texts.clear()
            self._texts[group] = self._table.read_row_group(group, columns=["key", "caption"])
        return self._texts[group][column][place].as_py()

    @cached_property
    def _texts(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _table(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.folder / f"{self.name}.rows.parquet")


def append_once(path: Path, line: str) -> bool:
    """Append a line to a file unless it is there already, whoever else does so at the same time; whether it was new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        new = line not in file.readlines()
        if new:
            file.write(line)
        return new


def _close(shards: dict[int, _Open]) -> None:
    for shard in shards.values():
        os.close(shard.file)


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data.

    Attributes:
        classes: by label; a single one if the data has no labels.
        captioned, labelled: whether every row has a caption, and a label that means something.
    """

    classes: list[ClassInfo]
    image_size: int
    captioned: bool
    labelled: bool
    train: Split
    validation: Split

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def check_captions(self, objective: str) -> None:
        """Stop before a training that would need captions.

        Raises:
            ValueError: the objective of pre-training has contrast with captions in it, and there are none.
        """
        if "clip" in objective and not self.captioned:
            raise ValueError(f"pretrain.objective={objective} needs captions, and the data has none; use ssl+ae.")

    @classmethod
    def open(cls, folder: Path, scratch: Scratch | None = None) -> Prepared:
        """Both splits of a folder that `prepare` wrote; checks that its files are there with their sizes, not their checksums."""
        manifest = read_manifest(folder, verify=False)
        classes = [ClassInfo(**entry) for entry in load_json(folder / "classes.json")]
        train, validation = (Split(folder, split, scratch) for split in SPLITS)
        return cls(classes, manifest["image_size"], manifest["captioned"], manifest["labelled"], train, validation)
