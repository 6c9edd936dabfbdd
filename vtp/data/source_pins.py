"""Pins of data sources: everything a source reads, by name. Scenes have a version.

Of class folders, which hold a million files, each folder is one entry: the number of its files, their bytes, and the sha256 over
their names and checksums.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtp.artifacts import load_json, save_json
from vtp.config import DataParams
from vtp.data import captions, pins
from vtp.data.sources.imagefolder import META, file_names, roots
from vtp.data.sources.parquet import parquet_files
from vtp.data.sources.webdataset import tar_files

SCENES_VERSION = 2
"""Raised when the renderer gives other pictures or captions for the same seed."""


def pin(data: DataParams) -> dict[str, Any]:
    """What the configured source reads; scenes have a version only.

    Raises:
        ValueError: there is nothing of the kind.
    """
    if data.source == "scenes":
        return {"version": SCENES_VERSION}
    return {_kind(data): _joined(data, pins.marks(_files(data)))}


def write_pin(data: DataParams, folder: Path) -> Path:
    """Write the pin of the configured source, `folder`/{source}.json, and return its path."""
    file = folder / f"{data.source}.json"
    save_json(file, {"source": data.source, **pin(data)})
    return file


def read_pin(data: DataParams, folder: Path) -> dict[str, Any]:
    """The pin of the configured source.

    Raises:
        ValueError: there is none, or nothing in it yet: `prepare` depends on the file, so that each source has an empty one.
    """
    file = folder / f"{data.source}.json"
    if not file.exists():
        raise ValueError(f"{file} does not exist; `python -m vtp pin` pins data.source={data.source}.")
    pinned = load_json(file)
    if data.source != "scenes" and not pinned[_kind(data)]:
        path = f"data.path={data.path}" if re.fullmatch(r"[\w./-]+", str(data.path)) else f"\"data.path='{data.path}'\""
        raise ValueError(f"{file} pins nothing yet; `python -m vtp pin data.source={data.source} {path}` pins what is there.")
    return pinned


def check_there(data: DataParams, folder: Path) -> None:
    """As much of `check` as opens no file: that the configured source is there, and pinned.

    Raises:
        ValueError: there is nothing of the kind, or no pin of it.
    """
    if data.source != "scenes":
        _files(data)
    read_pin(data, folder)


def check(data: DataParams, folder: Path) -> None:
    """Check the configured source against its pin in `folder`.

    Raises:
        ValueError: nothing is pinned, or the data differs from the pin; the first differences are named.
    """
    pinned = read_pin(data, folder)
    if data.source == "scenes":
        if pinned["version"] != SCENES_VERSION:
            file = folder / f"{data.source}.json"
            raise ValueError(f"{file} pins scenes {pinned['version']}, not {SCENES_VERSION}; run `python -m vtp pin`.")
        return
    files = _files(data)
    for look in (pins.sizes, pins.marks):  # what a look at the sizes shows need not wait until everything is read
        pins.refuse(str(data.path), pins.differences(pinned[_kind(data)], _joined(data, look(files))))


def _kind(data: DataParams) -> str:
    return "folders" if data.source == "imagefolder" else "files"


def _files(data: DataParams) -> dict[str, str]:
    """Locations of everything that the source reads, by name."""
    found = dict(_pictures(data))
    for key in ("class_names", "validation_labels"):
        value = getattr(data, key)
        if value not in (None, captions.IMAGENET):
            found[f"{key}/{Path(value).name}"] = value
    if data.validation_labels and (kit := Path(data.validation_labels).with_name(META)).is_file():
        found[f"validation_labels/{META}"] = str(kit)
    return found


def _pictures(data: DataParams) -> Iterator[tuple[str, str]]:
    if data.source == "imagefolder":
        for split, root in roots(data).items():
            names = sorted(file_names(root))
            if not names:
                raise ValueError(f"{root} holds no files; data.path and data.validation_path name folders of pictures.")
            yield from ((f"{split}/{name}", str(root / name)) for name in names)
    elif data.source == "parquet":
        for split, files in parquet_files(data).items():
            yield from ((f"{split}/{file.name}", str(file)) for file in files)
    else:
        for split, tars in tar_files(data).items():
            yield from _named(split, tars)


def _named(split: str, locations: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Tars by their last name, or by all of it where two have the same."""
    names = [location.rsplit("/", 1)[-1] for location in locations]
    counts = Counter(names)
    for name, location in zip(names, locations, strict=True):
        yield f"{split}/{name if counts[name] == 1 else location}", location


def _joined(data: DataParams, marks: pins.Marks) -> pins.Marks:
    """Marks of the files of each class folder as one."""
    if data.source != "imagefolder":
        return marks
    folders: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for name, mark in marks.items():
        folder, _, own = name.rpartition("/")
        folders[folder].append((own, mark))
    joined: pins.Marks = {}
    for folder, inside in sorted(folders.items()):
        joined[folder] = {"files": len(inside), "bytes": sum(mark["bytes"] for _, mark in inside)}
        if "sha256" in inside[0][1]:
            lines = "".join(f"{own} {mark['sha256']}\n" for own, mark in inside)
            joined[folder]["sha256"] = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return joined
