"""Pictures in tars, as img2dataset, open_clip and WebDataset write and read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from vtp.config import DataParams
from vtp.data import remote, tars
from vtp.data.shards import ClassInfo
from vtp.data.sources.base import Row, Scope, key_of, listed_names, readable, whole_number

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_BYTES = 2**27
"""Of a member that is read at all."""


def tar_files(data: DataParams) -> dict[str, list[str]]:
    """Paths or URLs of the tars of each split, in the order of `data.path` and `data.validation_path`."""
    assert data.path is not None  # the schema sees to it
    assert data.validation_path is not None
    return {"train": remote.expand(data.path), "validation": remote.expand(data.validation_path)}


class WebDataset:
    """Samples in tars; each tar is a part. A sample is a run of members that share a key, the name up to its first dot.

    A sample has one picture. Caption and label are members of their own (`txt`, `cls`), or fields of the member `json`
    (`json:caption`), as `data.webdataset` says. Labels have names from `data.class_names`.

    Raises:
        ValueError: no tars, a training tar that is for validation, too, or labels without names.
    """

    keys_apart: Scope = "part"  # tars written apart often count their samples from 0

    def __init__(self, data: DataParams) -> None:
        self.caption, self.label = data.webdataset.caption, data.webdataset.label
        self.captioned = self.caption is not None
        self.tars = tar_files(data)
        both = sorted(set(self.tars["train"]) & set(self.tars["validation"]))
        if both:
            raise ValueError(f"{both[0]} is in data.path and in data.validation_path; a tar is for one of them.")
        self.classes: list[ClassInfo] = []
        if self.label is not None:
            if data.class_names is None:
                raise ValueError(
                    f"data.webdataset.label={self.label}, but data.class_names is null; give a file with one name a line, "
                    "or null for both to leave the labels alone."
                )
            self.classes = [ClassInfo(name, {}) for name in listed_names(data.class_names)]
        self.wanted = {name.split(":")[0] for name in (self.caption, self.label) if name is not None}

    def parts(self, split: str) -> int:
        return len(self.tars[split])

    def tar(self, split: str, part: int) -> str:
        return self.tars[split][part]

    def rows(self, split: str, part: int) -> Iterator[Row]:
        location = self.tars[split][part]
        try:
            file = remote.open_file(location)
        except FileNotFoundError:
            raise ValueError(f"{location} does not exist; mend data.path, or leave it out there.") from None
        except OSError as error:
            raise ValueError(f"{location} cannot be read ({error.strerror}); mend it, or leave it out of data.path.") from None
        with file:
            yield from self.read(file, readable(location))

    def read(self, file: BinaryIO, location: str) -> Iterator[Row]:
        """Rows of an open tar; what of it cannot be used comes as rows with a fault, a cut tar's last row among them."""
        sample: _Sample | None = None
        members = tars.members(file)
        while True:
            try:
                member = next(members, None)
                if member is None:
                    break
                if tars.leads_out(member.name):
                    yield _useless(member.name, location, "the member's name leads out of the tar")
                    continue
                name = tars.part_name(member.name)
                if name is None or not (name[1] in IMAGES or name[1] in self.wanted):
                    continue
                if not member.regular:
                    yield _useless(member.name, location, "the member is a link or no file")
                    continue
                if sample is None or name[0] != sample.key:
                    if sample is not None:
                        yield self._row(sample, location)
                    sample = _Sample(name[0])
                if member.size > MOST_BYTES:
                    sample.fault = f"{name[1]} has more than {MOST_BYTES} bytes"
                else:
                    sample.add(name[1], member.offset, tars.read(file, member))
            except tars.BrokenTar as error:
                # The sample at hand may have lost a part of itself; those before it are whole.
                yield _useless(sample.key if sample else None, location, str(error))
                return
        if sample is not None:
            yield self._row(sample, location)

    def _row(self, sample: _Sample, location: str) -> Row:
        try:
            if sample.fault:
                raise _Fault(sample.fault)
            caption = self._field(sample, self.caption)
            label = self._field(sample, self.label)
            if caption is not None and not isinstance(caption, str):
                raise _Fault("caption is no text")
            try:
                number = None if label is None else whole_number(label)
            except ValueError:
                raise _Fault("label is no whole number") from None
        except _Fault as fault:
            return _useless(sample.key, location, str(fault))
        return Row(key_of(sample.key), sample.image, caption, number, None, file=location, offset=sample.offset)

    def _field(self, sample: _Sample, name: str | None) -> Any:
        """The text of a member, or a field of a JSON member; None without one."""
        extension, _, key = (name or "").partition(":")
        data = sample.texts.get(extension)
        if data is None:
            return None
        if not key:
            return data.decode("utf-8", "replace")
        try:
            value = json.loads(data)
            return value.get(key) if isinstance(value, dict) else None
        except (ValueError, RecursionError):
            raise _Fault(f"{extension} cannot be read") from None


class _Fault(Exception):
    """Why a sample cannot be used."""


class _Sample:
    """Members of one key."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.image: bytes | None = None
        self.offset: int | None = None
        self.texts: dict[str, bytes] = {}
        self.fault: str | None = None

    def add(self, extension: str, offset: int, data: bytes) -> None:
        if extension in IMAGES:
            if self.image is not None:
                self.fault = "two pictures have one key"
            self.image, self.offset = data, offset
        elif extension in self.texts:
            self.fault = f"two members {extension} have one key"
        else:
            self.texts[extension] = data


def _useless(name: str | None, location: str, fault: str) -> Row:
    key = None if name is None else name.encode("utf-8", "replace").decode()
    return Row(key, None, None, None, None, file=location, fault=fault)
