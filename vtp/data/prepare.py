"""From a source to shards: parts are checked, stored or indexed by worker processes, and what is broken is put aside.

A shard is a part of the source, so neither the number of workers nor their pace can show in the result. Validation comes first:
training rows are held against it. Shards report through files, and what the parent keeps does not grow with the rows.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vtp.artifacts import folder_aside, load_json, save_json, write_manifest
from vtp.config import DataParams
from vtp.data import contract, duplicates, remote
from vtp.data.duplicates import Seen
from vtp.data.executors import Run, executor
from vtp.data.shards import SPLITS, ClassInfo, Tar, tar_name
from vtp.data.sources import Source, open_source
from vtp.data.tally import Tally
from vtp.data.work import PARTS, Job, Report, Work

UNLABELLED = ClassInfo("picture", {})
"""The class of everything, where the data has no labels."""
QUARANTINE = "quarantine.parquet"
NAMED = 3
"""Broken rows that an error names."""


@dataclass(frozen=True)
class How:
    """How the work is done, which shows nowhere in the result."""

    executor: Literal["processes", "ray"] = "processes"
    workers: int | None = None


def prepare(folder: Path, data: DataParams, seed: int, how: How) -> dict[str, Any]:
    """Write the prepared data to `folder` and return its statistics; the folder appears only when it is whole.

    Args:
        seed: of rendered sources.

    Raises:
        ValueError: a split has more broken rows than `data.max_bad_fraction`, or no good ones.
    """
    return prepare_source(folder, open_source(data, seed), data, how)


def prepare_source(folder: Path, source: Source, data: DataParams, how: How) -> dict[str, Any]:
    """`prepare` for any source."""
    for split in SPLITS:
        if source.parts(split) == 0:
            raise ValueError(f"data.source={data.source} has no {split} rows; training and evaluation need both splits.")
    classes = source.classes or [UNLABELLED]
    with folder_aside(folder) as aside:
        work = Work(source, data, classes, aside)
        (aside / PARTS).mkdir()
        with executor(how.executor, work, how.workers) as run:
            for split in ("validation", "train"):
                _make(work, split, run)
                _refuse_if_bad(work, split)
        facts: dict[str, Any] = {split: _put_together(work, split) for split in SPLITS}
        training = Tally.total(_parts(work, "train", "tally.npz"))
        facts |= training.channels()
        _write_quarantine(work)
        shutil.rmtree(aside / PARTS)
        save_json(aside / "classes.json", [asdict(entry) for entry in classes])
        save_json(aside / "statistics.json", facts)
        write_manifest(
            aside,
            {
                "source": data.source,
                "image_size": data.image_size,
                "store_size": _store_size(work, training),
                "context_length": data.context_length,
                "num_classes": len(classes),
                "labelled": len(source.classes) > 1,  # a single class says nothing of a picture
                "captioned": work.captioned,
            },
        )
    return facts


def _make(work: Work, split: str, run: Run) -> None:
    """All shards of a split; those with a row whose key another shard has are made a second time without it."""
    from tqdm import tqdm

    jobs = [Job(split, number) for number in range(work.source.parts(split))]
    hashes: list[Report] = []

    def reported(bar: tqdm) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        rows = 0
        for report in run(jobs):
            rows += report.rows
            bar.set_postfix(rows=rows, refresh=False)
            bar.update()
            if split == "validation":
                hashes.append(report)
            yield report.job.number, report.keys, report.numbers

    with tqdm(total=len(jobs), desc=f"prepare {split}", unit="shard", disable=None) as bar:
        again: dict[int, dict[int, list[str]]] = {}
        if work.source.keys_apart != "part":
            for number, row in duplicates.repeated(reported(bar), work.folder / PARTS / "keys"):
                again.setdefault(number, {})[row] = [contract.REPEATED_KEY]
        else:
            for _ in reported(bar):
                pass
    made_again = {
        report.job.number: report for report in run([Job(split, number, rows) for number, rows in sorted(again.items())])
    }
    if split == "validation":
        found = [made_again.get(report.job.number, report) for report in hashes]
        parts = ([getattr(report, name) for report in found] for name in ("keys", "images", "looks"))
        keys, images, looks = (np.unique(np.concatenate(part)) for part in parts)
        Seen(keys, images, looks if work.data.duplicate_bits is not None else looks[:0]).save(work.seen)


def _store_size(work: Work, training: Tally) -> int:
    """Side of the squares that training batches hold: as stored, but no more than half of the pictures have to give."""
    return min(work.side, max(work.data.image_size, training.short_side))


def _parts(work: Work, split: str, what: str) -> Iterator[Path]:
    return (work.part(Job(split, number), what) for number in range(work.source.parts(split)))


def _refuse_if_bad(work: Work, split: str) -> None:
    tally = Tally.total(_parts(work, split, "tally.npz"))
    total, bad = int(tally.rows[0]), int(tally.broken[0])
    if not total:
        raise ValueError(f"{work.data.path} has no {split} rows.")
    if bad > work.data.max_bad_fraction * total or bad == total:
        rows = [row for path in _parts(work, split, "bad.json") for row in load_json(path)]
        counts = ", ".join(f"{reason}: {count}" for reason, count in _reasons(rows).items())
        first = ", ".join(str(row["key"] or row["file"]) for row in rows[:NAMED])
        raise ValueError(
            f"{bad} of {total} {split} rows are broken ({counts}; first {first}), "
            f"more than data.max_bad_fraction={work.data.max_bad_fraction} allows; mend the source."
        )


def _reasons(rows: Sequence[dict[str, str]]) -> dict[str, int]:
    counts = Counter(reason for row in rows for reason in row["reason"].split("; "))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _put_together(work: Work, split: str) -> dict[str, Any]:
    """Write the list of shards and the table of rows of a split, and count what is in it."""
    import pyarrow.parquet as pq

    copy = work.data.mode == "copy"
    writer: pq.ParquetWriter | None = None
    tars = []
    try:
        for number, path in enumerate(_parts(work, split, "rows.parquet")):
            rows = pq.read_table(path)
            location = tar_name(split, number) if copy else str(work.source.tar(split, number))
            tars.append(Tar(location, len(rows), remote.size(str(work.folder / location) if copy else location)))
            if len(rows):
                writer = writer or pq.ParquetWriter(work.folder / f"{split}.rows.parquet", rows.schema)
                writer.write_table(rows.cast(writer.schema), row_group_size=len(rows))
    finally:
        if writer is not None:
            writer.close()
    save_json(work.folder / f"{split}.shards.json", [asdict(entry) for entry in tars])
    facts = Tally.total(_parts(work, split, "tally.npz")).facts()
    counts: Counter[str] = Counter()
    for path in _parts(work, split, "bad.json"):
        counts.update(_reasons(load_json(path)))
    return facts | {"broken": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))}


def quarantined(folder: Path, rows: int) -> tuple[dict[tuple[str, str], int], list[dict[str, str]]]:
    """What was put aside in prepared data: counts by (split, reason), the largest first, and the first rows.

    Raises:
        ValueError: there is no prepared data.
    """
    import pyarrow.parquet as pq

    counts: Counter[tuple[str, str]] = Counter()
    first: list[dict[str, str]] = []
    table = folder / QUARANTINE
    if not table.is_file():
        raise ValueError(f"{table} is missing; `dvc repro prepare` makes it.")
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches():
            found = batch.to_pylist()
            counts.update((row["split"], reason) for row in found for reason in row["reason"].split("; "))
            first += found[: rows - len(first)]
    return dict(counts.most_common()), first


def _write_quarantine(work: Work) -> None:
    """All rows that were put aside: split, file, key and reason."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("split", "file", "key", "reason")])
    with pq.ParquetWriter(work.folder / QUARANTINE, schema) as writer:
        for split in SPLITS:
            for path in _parts(work, split, "bad.json"):
                writer.write_table(pa.Table.from_pylist(load_json(path), schema))
