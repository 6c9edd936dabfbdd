"""What all sources have in common: the rows they give, numbered selections, names of classes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from vtp.config import DataParams
from vtp.data import captions, contract
from vtp.data.shards import ClassInfo

Scope = Literal["all", "split", "part"]


@dataclass(frozen=True)
class Row:
    """One sample as the source has it; None where the source has nothing.

    Attributes:
        factors: of rendered pictures, what they are made of.
        file: path or URL of the file it comes from.
        offset: of the encoded picture within that file, bytes; for sources that are tars.
        fault: why nobody can use it, if the source knows already; the fields above may be missing then.
    """

    key: str | None
    image: bytes | None
    caption: str | None
    label: int | None
    class_name: str | None
    factors: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    offset: int | None = None
    fault: str | None = None


class Source(Protocol):
    """Two splits, `train` and `validation`, each in parts that are read apart and in any order. Travels to other processes.

    Attributes:
        captioned: whether rows have captions of their own.
        classes: the known classes, by label; empty if rows have no labels.
        keys_apart: within what no two rows should have one key: all of the data, a split, or a part.
    """

    captioned: bool
    classes: list[ClassInfo]
    keys_apart: Scope

    def parts(self, split: str) -> int:
        """Number of parts of a split; each becomes a shard."""
        ...

    def rows(self, split: str, part: int) -> Iterator[Row]:
        """Rows of a part, the same ones at every call."""
        ...

    def tar(self, split: str, part: int) -> str | None:
        """Path or URL of the tar that a part is; None for other parts."""
        ...


class Numbered:
    """Rows that are counted before they are read: which of them make up a split, and cutting that into parts.

    Attributes:
        chosen: for each split, row numbers in ascending order.
    """

    keys_apart: Scope = "all"

    def __init__(self, data: DataParams, labels: Mapping[str, np.ndarray]) -> None:
        """Choose rows as `data.train_samples` and `data.validation_samples` say, spread evenly over all and over the labels.

        Args:
            labels: for each split its rows' labels, -1 for none; without a split `validation`, `data.validation_samples` rows
                are held out of the training rows.
        """
        self.chosen: dict[str, np.ndarray] = {}
        self._samples = data.shard_samples
        pools = {split: np.arange(len(found)) for split, found in labels.items()}
        if "validation" not in labels:
            if data.validation_samples is None:
                raise ValueError(
                    f"{data.path} holds no validation data; give data.validation_path, or hold some out: "
                    "data.validation_samples=500, say."
                )
            labels = {"train": labels["train"], "validation": labels["train"]}
            pools["validation"] = _few(labels["train"], data.validation_samples, "validation", data)
            pools["train"] = np.setdiff1d(pools["train"], pools["validation"])
        for split, wanted in (("train", data.train_samples), ("validation", data.validation_samples)):
            pool = pools[split]
            self.chosen[split] = pool if wanted is None else pool[_few(labels[split][pool], wanted, split, data)]

    def parts(self, split: str) -> int:
        """Number of parts of a split."""
        return -(-len(self.chosen[split]) // self._samples)

    def tar(self, split: str, part: int) -> None:
        """No part is a tar."""

    def numbers(self, split: str, part: int) -> np.ndarray:
        """Numbers of the rows of a part, ascending."""
        return self.chosen[split][part * self._samples : (part + 1) * self._samples]


def _few(labels: np.ndarray, count: int, split: str, data: DataParams) -> np.ndarray:
    if count > len(labels):
        raise ValueError(f"data.{split}_samples={count}, but {data.path} has {len(labels)} such rows; use null for all.")
    return spread(labels, count)


def spread(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` row numbers, ascending, evenly spread over the rows of each label: (count) int64.

    Labels keep their shares, and each has one row at least where `count` allows it.

    Args:
        labels: (n) int64, n >= count.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if count < len(sizes):  # too few for all labels: evenly spread over the labels in order
        order = np.argsort(inverse, kind="stable")
        return np.sort(order[np.arange(count) * len(labels) // count])
    # One row for each label, the others in proportion; what rounding leaves goes to the largest remainders.
    spare, others = count - len(sizes), max(len(labels) - len(sizes), 1)
    quotas = 1 + spare * (sizes - 1) // others
    remainders = spare * (sizes - 1) % others
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    chosen = [mine[np.arange(quota) * len(mine) // quota] for mine, quota in zip(rows, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def key_of(name: str) -> str:
    """A key that the contract lets pass, from a file's name without its suffix; another name gives another key."""
    key = name.removeprefix("./").replace("/", "_")
    if re.fullmatch(contract.KEY, key):
        return key
    return (
        re.sub("[^A-Za-z0-9_-]", "-", key)[:70] + "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    )


def readable(name: str) -> str:
    """The name of a file in characters: bytes that are none, as old archives leave them, become `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def whole_number(text: Any) -> int:
    """A label as text or JSON has it.

    Raises:
        ValueError: it is none.
    """
    try:
        number = int(text)
    except (TypeError, OverflowError):
        number = -(2**31)
    if (isinstance(text, float) and number != text) or abs(number) >= 2**31:
        raise ValueError(f"{text} is no label.")
    return number


def listed_names(class_names: str) -> list[str]:
    """Class names by label: the lines of a file, or ImageNet's.

    Raises:
        ValueError: there is no such file, or an empty line in it.
    """
    if class_names == captions.IMAGENET:
        return captions.imagenet_names()
    names = [line.strip() for line in text_of(class_names, "data.class_names").splitlines()]
    if not names or "" in names:
        raise ValueError(f"data.class_names={class_names} must hold a name in each line, in the order of the labels.")
    return names


def folder_names(class_names: str, folders: Sequence[str]) -> list[str]:
    """Class names by folder: from lines `folder name` (of synonyms the first), as ImageNet's LOC_synset_mapping.txt has them.

    Raises:
        ValueError: a folder has no line; or, for `imagenet`, they are not as many as its classes.
    """
    if class_names == captions.IMAGENET:
        names = captions.imagenet_names()
        if len(names) != len(folders):
            raise ValueError(f"data.class_names=imagenet names {len(names)} classes, but there are {len(folders)} class folders.")
        return names
    lines = text_of(class_names, "data.class_names").splitlines()
    pairs = [line.strip().split(maxsplit=1) for line in lines if line.strip()]
    known = {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
    missing = [folder for folder in folders if folder not in known]
    if missing:
        raise ValueError(f"data.class_names={class_names} has no line `{missing[0]} its name`; every class folder needs one.")
    return [known[folder] for folder in folders]


def text_of(file: str, key: str) -> str:
    """What is in the text file that the parameter `key` names, without the mark that some editors begin one with.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{key}={file} does not exist; name one that does, or set it to null.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}={file} is not in UTF-8 ({error.reason} at byte {error.start}); save it as such.") from None
    except OSError as error:
        raise ValueError(f"{key}={file} cannot be read ({error.strerror}); mend it, or set it to null.") from None
