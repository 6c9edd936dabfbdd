"""One part of a source becomes one shard: rows are read, checked, stored or indexed, and counted, some thousand at a time.

A process that does this needs memory for those rows and for the index of its shard, however many shards there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from vtp.artifacts import save_json, save_tensors
from vtp.config import DataParams
from vtp.data import captions, contract, duplicates, pictures
from vtp.data.duplicates import Seen
from vtp.data.shards import ClassInfo, index_name, tar_name, write_shard
from vtp.data.sources import Row, Source
from vtp.data.tally import Tally

if TYPE_CHECKING:
    import pandas as pd

    from vtp.data.contract import Schema

HELD_ROWS, HELD_BYTES = 4096, 2**26
"""Rows that are checked together: as many as this, or fewer if their pictures need more bytes."""
PARTS = ".parts"
"""Below the folder of the prepared data while it is made: what shards report, to be put together at the end."""


@dataclass(frozen=True)
class Job:
    """Part `number` of a split. `dropped` are rows (by number in the part) that other shards forbid, with reasons."""

    split: str
    number: int
    dropped: dict[int, list[str]] = field(default_factory=dict)


class Report(NamedTuple):
    """What the parent needs of a shard at once; the rest lies in `PARTS`.

    Attributes:
        rows: of the part; `good` of them are in the shard.
        numbers: of the good rows within the part; `keys`, `images` and `looks` are their hashes, all (good) uint64.
    """

    job: Job
    rows: int
    good: int
    numbers: np.ndarray
    keys: np.ndarray
    images: np.ndarray
    looks: np.ndarray


class Look(NamedTuple):
    """What is found out about a picture: why it is none, or its measures and hashes, and its form in the shard if stored."""

    fault: str | None = None
    height: int | None = None
    width: int | None = None
    short_side: int | None = None
    image_hash: int | None = None
    look_hash: int | None = None
    stored: tuple[bytes, str] | None = None
    levels: np.ndarray | None = None


@dataclass(frozen=True)
class Work:
    """What all jobs of a run share; called, it makes the shard of a job.

    Attributes:
        classes: by label; one for everything if the source has no labels.
        folder: of the prepared data, not yet at its final place.
    """

    source: Source
    data: DataParams
    classes: list[ClassInfo]
    folder: Path

    def __call__(self, job: Job) -> Report:
        return make_shard(self, job)

    @property
    def captioned(self) -> bool:
        """Whether every row has a caption, its own or one from a template and its class."""
        return self.source.captioned or bool(self.source.classes and self.data.templates)

    @property
    def side(self) -> int:
        """Short side that stored pictures have at most, pixels."""
        return self.data.store_size or self.data.image_size * 5 // 4

    @property
    def seen(self) -> Path:
        """Where the hashes of the validation split lie, once it is done."""
        return self.folder / PARTS / "validation.npz"

    def part(self, job: Job, what: str) -> Path:
        """Where a shard leaves what is put together at the end."""
        return self.folder / PARTS / f"{job.split}-{job.number:05d}.{what}"

    def schema(self, seen: Seen | None) -> Schema:
        """The contract of a split's rows."""
        names = [entry.name for entry in self.source.classes]
        return contract.row_schema(names, captioned=self.captioned, keys_differ=self.source.keys_apart == "all", seen=seen)

    @cached_property
    def templates(self) -> tuple[str, ...]:
        return captions.expand_templates(self.data.templates)

    def caption(self, row: Row) -> str | None:
        """The caption of a row as it is stored."""
        if self.source.captioned:
            return None if row.caption is None else captions.bounded(row.caption)
        if not self.captioned or row.label is None or not 0 <= row.label < len(self.classes):
            return None
        return self.templates[duplicates.text_hash(str(row.key)) % len(self.templates)].format(self.classes[row.label].name)


def make_shard(work: Work, job: Job) -> Report:
    """Check the rows of a job, write those that keep the contract to its tar and its index, and leave the rest in `PARTS`."""
    import pandas as pd

    seen = Seen.load(work.seen) if job.split == "train" else None
    schema = work.schema(seen)
    tally = Tally.empty(work.data.context_length, len(work.classes))
    frames: list[pd.DataFrame] = []
    bad: list[dict[str, Any]] = []

    def samples() -> Iterator[tuple[str, str, bytes, dict[str, Any]]]:
        """Good rows whose pictures are stored; what is found out about any row is noted on the way."""
        for first, rows in held_together(work.source.rows(job.split, job.number)):
            looks = [look_at(work, row) for row in rows]
            frame = describe(work, rows, looks, first, seen)
            given_up = {number: [row.fault] for number, row in enumerate(rows, first) if row.fault}
            reasons = given_up | contract.broken(schema, frame.drop(index=list(given_up))[list(schema.columns)])
            reasons |= {
                number: sorted({*reasons.get(number, []), *more}) for number, more in job.dropped.items() if number in frame.index
            }
            kept = [number not in reasons for number in frame.index]
            frames.append(frame[kept])
            tally.count(frames[-1], [look.levels for look, good in zip(looks, kept, strict=True) if good], rows=len(rows))
            for row, look, number in zip(rows, looks, frame.index, strict=True):
                if number in reasons:
                    reason = "; ".join(reasons[number])
                    bad.append({"split": job.split, "file": row.file, "key": row.key, "reason": reason})
                elif look.stored:
                    name = None if row.label is None else work.classes[row.label].name
                    about = {**row.factors, "caption": work.caption(row), "label": row.label, "class_name": name}
                    yield str(row.key), look.stored[1], look.stored[0], about

    if work.data.mode == "copy":
        places = write_shard(work.folder / tar_name(job.split, job.number), samples())
    else:
        assert not list(samples()), "pictures are stored in copy mode only"
        places = None
    table = pd.concat(frames or [describe(work, [], [], 0, seen)])
    if places:
        table["offset"], table["length"] = places
    _write(work, job, table, bad)
    tally.save(work.part(job, "tally.npz"))
    hashes = [table[name].to_numpy(np.uint64, na_value=0) for name in ("key_hash", "image_hash", "look_hash")]
    return Report(job, int(tally.rows[0]), len(table), table.index.to_numpy(), *hashes)


def held_together(rows: Iterator[Row]) -> Iterator[tuple[int, list[Row]]]:
    """Rows as many as are checked together, behind the number of the first."""
    held: list[Row] = []
    first, weight = 0, 0
    for row in rows:
        held.append(row)
        weight += len(row.image or b"")
        if len(held) == HELD_ROWS or weight > HELD_BYTES:
            yield first, held
            first, held, weight = first + len(held), [], 0
    if held:
        yield first, held


def look_at(work: Work, row: Row) -> Look:
    """Find out about a row's picture what the mode asks for."""
    if row.fault:
        return Look()
    copy, data = work.data.mode == "copy", row.image
    try:
        if not copy and not work.data.deep_check:
            image = pictures.examine(data)
            return Look(None, image.height, image.width, min(image.size), duplicates.bytes_hash(data or b""))
        stored = pictures.store(data, work.side) if copy else None
        image = stored.image if stored else pictures.decode(data)
    except pictures.Unusable as fault:
        return Look(str(fault))
    return Look(
        None,
        image.height,
        image.width,
        stored.short_side if stored else min(image.size),
        duplicates.pixel_hash(image),
        None if work.data.duplicate_bits is None else duplicates.look_hash(image),
        (stored.data, stored.suffix) if stored else None,
        pictures.histogram(image),
    )


def describe(work: Work, rows: list[Row], looks: list[Look], first: int, seen: Seen | None) -> pd.DataFrame:
    """Everything about rows but their pictures, by number in the part, of which the first is `first`.

    Columns: those of the contract; file, offset, length, height, width, look_hash; tokens, (L) int32 each; and the factors.
    """
    import pandas as pd

    texts = [work.caption(row) for row in rows]
    tokens = captions.tokenize([text or "" for text in texts], work.data.context_length).to(torch.int32).numpy()
    ids = np.argmax(tokens == captions.END, axis=1) + 1 if len(rows) else []
    long_sides = [max(look.height, look.width) if look.height and look.width else None for look in looks]
    short_sides = [min(look.height, look.width) if look.height and look.width else None for look in looks]
    columns: dict[str, Any] = {
        "key": pd.array([row.key for row in rows], "string"),
        "caption": pd.array(texts, "string"),
        "caption_ids": pd.array([None if text is None else int(n) for text, n in zip(texts, ids, strict=True)], "Int64"),
        "label": pd.array([row.label for row in rows], "Int64"),
        "class_name": pd.array([row.class_name for row in rows], "string"),
        "fault": pd.array([row.fault or look.fault for row, look in zip(rows, looks, strict=True)], "string"),
        "short_side": pd.array([look.short_side for look in looks], "Int64"),
        "elongation": np.array([a / b if a and b else np.nan for a, b in zip(long_sides, short_sides, strict=True)], dtype=float),
        "key_hash": pd.array([None if row.key is None else duplicates.text_hash(row.key) for row in rows], "UInt64"),
        "image_hash": pd.array([look.image_hash for look in looks], "UInt64"),
        "look_hash": pd.array([look.look_hash for look in looks], "UInt64"),
        "height": pd.array([look.height for look in looks], "Int64"),
        "width": pd.array([look.width for look in looks], "Int64"),
        "offset": pd.array([row.offset for row in rows], "Int64"),
        "length": pd.array([None if row.image is None else len(row.image) for row in rows], "Int64"),
        "alike": _alike(work, looks, seen),
        "tokens": pd.Series(list(tokens), dtype=object).to_numpy(),
    }
    for name in sorted({name for row in rows for name in row.factors}):
        columns[name] = [row.factors.get(name) for row in rows]
    return pd.DataFrame(columns, index=range(first, first + len(rows)))


def _alike(work: Work, looks: list[Look], seen: Seen | None) -> np.ndarray:
    """Which pictures look like one of validation, (n) bool."""
    bits = work.data.duplicate_bits
    if seen is None or bits is None:
        return np.zeros(len(looks), dtype=bool)
    found = duplicates.alike(np.array([look.look_hash or 0 for look in looks], dtype=np.uint64), seen.looks, bits)
    return found & np.array([look.look_hash is not None for look in looks], dtype=bool)


def _write(work: Work, job: Job, table: pd.DataFrame, bad: list[dict[str, Any]]) -> None:
    """The index of a shard; and for the end its rows in words, and what was put aside."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"offset": np.int64, "length": np.int32, "label": np.int32, "height": np.int32, "width": np.int32}
    index = {name: torch.from_numpy(table[name].to_numpy(kind, copy=True, na_value=0)) for name, kind in kinds.items()}
    tokens = np.stack(table["tokens"].tolist()) if len(table) else np.zeros((0, work.data.context_length), dtype=np.int32)
    save_tensors(work.folder / index_name(job.split, job.number), {**index, "tokens": torch.from_numpy(tokens)})
    factors = list(table.columns[table.columns.get_loc("tokens") + 1 :])
    words = table[["key", "caption", "label", "class_name", "image_hash", *factors]]
    if work.source.classes:
        names = pd.Series([entry.name for entry in work.classes], dtype="string")
        words = words.assign(class_name=words["label"].map(names))
    rows = pa.Table.from_pandas(words, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(rows, work.part(job, "rows.parquet"))
    save_json(work.part(job, "bad.json"), bad)
