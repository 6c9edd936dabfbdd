"""Pictures as files: a folder for each class, ImageNet as it is distributed, or just a folder of photographs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from vtp.config import DataParams
from vtp.data.shards import ClassInfo
from vtp.data.sources.base import Numbered, Row, Scope, folder_names, key_of, readable, text_of

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
"""Of files that are taken for pictures; what is in them is another matter. Compared in lower case."""
CAPTION = ".txt"
META = "meta.mat"
"""Beside ILSVRC2012_validation_ground_truth.txt in ImageNet's development kit: what its numbers mean."""
TRAIN, VALIDATION = "train", ("val", "validation")


def roots(data: DataParams) -> dict[str, Path]:
    """The folder of each split: `train` and `val` or `validation` below `data.path`, or `data.path` and `data.validation_path`.

    Raises:
        ValueError: there is no such folder.
    """
    assert data.path is not None  # the schema sees to it
    folder = Path(data.path)
    found = {"train": folder / TRAIN if (folder / TRAIN).is_dir() else folder}
    beside = [folder / name for name in VALIDATION if found["train"] != folder and (folder / name).is_dir()]
    if data.validation_path is not None:
        found["validation"] = Path(data.validation_path)
    elif beside:
        found["validation"] = beside[0]
    for root in found.values():
        if not root.is_dir():
            raise ValueError(f"{root} is no folder; data.path and data.validation_path name folders of pictures.")
    return found


class ImageFolder(Numbered):
    """Files below class folders, or below one folder for pictures without labels.

    Classes are the folders of the training split in the order of their names. A text file of the name of a picture, beside it, is
    its caption. Rows come in a fixed shuffled order, so that a shard is no run of one class. Hidden files do not count.

    A validation folder may be flat where `data.validation_labels` says what is in it: a file of lines `name class`, class being a
    class folder's name or, where no folder is called by a number, a label (ImageNet's LOC_val_solution.csv, say), or ImageNet's
    ILSVRC2012_validation_ground_truth.txt with the development kit's meta.mat beside it.

    Raises:
        ValueError: no pictures, files that do not fit each other, more rows wanted than there are.
    """

    keys_apart: Scope = "split"  # files are often counted from 0 in each

    def __init__(self, data: DataParams) -> None:
        import pyarrow as pa

        self.roots = roots(data)
        names = {split: file_names(root) for split, root in self.roots.items()}
        for split, found in names.items():
            if not any(_is_picture(name) for name in found):
                raise ValueError(f"{self.roots[split]} holds no pictures ({', '.join(sorted(SUFFIXES))}).")
        texts = {str(Path(name).with_suffix("")) for name in names["train"] if Path(name).suffix.lower() == CAPTION}
        self.captioned = bool(texts) and any(_is_picture(n) and str(Path(n).with_suffix("")) in texts for n in names["train"])
        folders = sorted({name.split("/")[0] for name in names["train"] if "/" in name})
        if folders and any("/" not in name and _is_picture(name) for name in names["train"]):
            raise ValueError(f"{self.roots['train']} holds pictures beside the class folder {folders[0]}; have one or the other.")
        self.folders = folders
        self._by_folder = {folder: label for label, folder in enumerate(folders)}
        words = [readable(name) for name in folders] if data.class_names is None else folder_names(data.class_names, folders)
        self.classes = [ClassInfo(word, {}) for word in words]
        self.flat = _labels(Path(data.validation_labels), folders) if data.validation_labels else None
        # Compact, because every process gets them: a list of a million names is a hundred megabytes. A name is any bytes.
        rows = {split: sorted(filter(_counts, found), key=_shuffled) for split, found in names.items()}
        self.names = {split: pa.array([os.fsencode(name) for name in found], pa.binary()) for split, found in rows.items()}
        labels = {split: np.array([self._label(split, name) for name in found]) for split, found in rows.items()}
        super().__init__(data, labels)
        self.roots.setdefault("validation", self.roots["train"])
        self.names.setdefault("validation", self.names["train"])

    def rows(self, split: str, part: int) -> Iterator[Row]:
        for number in self.numbers(split, part).tolist():
            name = os.fsdecode(self.names[split][number].as_py())
            file = self.roots[split] / name
            key, shown = key_of(str(Path(name).with_suffix(""))), readable(str(file))
            if not _is_picture(name):
                yield Row(key, None, None, None, None, file=shown, fault="file name is not that of a picture")
                continue
            label = self._label(split, name)
            try:
                image, caption = file.read_bytes(), self._caption(file)
            except OSError as error:
                yield Row(key, None, None, None, None, file=shown, fault=f"file cannot be read ({error.strerror})")
                continue
            if self.folders and label < 0:
                yield Row(key, None, None, None, None, file=shown, fault="folder or label is not that of a training class")
                continue
            yield Row(key, image, caption, label if self.folders else None, None, file=shown)

    def _label(self, split: str, name: str) -> int:
        """Label of a file, -1 without one."""
        if split == "validation" and self.flat is not None:
            return self.flat.get(Path(name).stem, -1)
        return self._by_folder.get(name.split("/")[0], -1) if "/" in name else -1

    def _caption(self, file: Path) -> str | None:
        beside = file.with_suffix(CAPTION)
        return beside.read_text(encoding="utf-8", errors="replace") if self.captioned and beside.exists() else None


def file_names(root: Path) -> list[str]:
    """Files below a folder and the folders that links in it lead to, relative, hidden ones left out."""
    found = []
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".") and not _leads_up(root, Path(folder) / name)]
        below = os.path.relpath(folder, root)
        found += [name if below == "." else f"{below}/{name}" for name in files if not name.startswith(".")]
    return found


def _leads_up(root: Path, folder: Path) -> bool:
    """Whether a folder is a link to one that leads to it, above `root` too: following it would never end."""
    if not folder.is_symlink():
        return False
    above = [parent for parent in folder.parents if parent.is_relative_to(root)]
    return any(parent.resolve().is_relative_to(folder.resolve()) for parent in above)


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _counts(name: str) -> bool:
    """Whether a file is a row: captions are not."""
    return Path(name).suffix.lower() != CAPTION


def _shuffled(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _labels(file: Path, folders: list[str]) -> dict[str, int]:
    """Labels of a flat folder's pictures by name without suffix; -1 for a class that is none."""
    lines = text_of(str(file), "data.validation_labels").splitlines()
    pairs = [re.split(r"[,\s]+", line.strip()) for line in lines if line.strip()]
    by_folder = {folder: label for label, folder in enumerate(folders)}
    if all(len(pair) == 1 for pair in pairs):
        numbered = {number: by_folder.get(folder, -1) for number, folder in _development_kit(file.with_name(META)).items()}
        return {f"ILSVRC2012_val_{i:08d}": numbered.get(int(pair[0]), -1) for i, pair in enumerate(pairs, 1)}
    if pairs and pairs[0][0] == "ImageId":  # the heading of LOC_val_solution.csv
        pairs = pairs[1:]
    if not all(len(pair) >= 2 for pair in pairs):
        raise ValueError(f"data.validation_labels={file} must hold lines `name class`.")
    # Where folders are called by numbers, a number is a name: folder 10 comes before folder 2.
    counted = {} if any(folder.isdigit() for folder in folders) else {str(label): label for label in range(len(folders))}
    known = counted | by_folder
    return {Path(name).stem: known.get(target, -1) for name, target, *_ in pairs}


def _development_kit(file: Path) -> dict[int, str]:
    """WordNet numbers by ILSVRC2012_ID, from ImageNet's development kit."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; the numbers in data.validation_labels mean nothing without it.")
    from scipy.io import loadmat

    synsets = loadmat(str(file), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
