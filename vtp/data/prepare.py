"""From a source to shards: rows are checked, cropped, written by worker processes, and what is broken is put aside.

A shard is a fixed run of the source's rows, so neither the number of workers nor their pace can show in the result.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vtp.artifacts import folder_aside, save_json, save_tensors, write_manifest
from vtp.config import DataParams
from vtp.data import captions, contract, pictures
from vtp.data.shards import SPLITS, ClassInfo, Tar, index_name, tar_name, write_shard
from vtp.data.sources import Row, Source, open_source

if TYPE_CHECKING:
    import pandas as pd

INDEX = {"offset": np.int64, "length": np.int32, "label": np.int32, "height": np.int32, "width": np.int32}
"""Columns of a shard's index beside the caption ids."""


@dataclass(frozen=True)
class Job:
    """Rows [start, stop) of a split, which become shard `number`. `dropped` are rows (by number in the split) that other shards
    forbid, with reasons."""

    split: str
    number: int
    start: int
    stop: int
    dropped: dict[int, list[str]]


@dataclass(frozen=True)
class Shard:
    """What a worker reports of the shard it wrote.

    Attributes:
        rows: key, caption, label, class_name, factor columns, offset, length, height, width, image_hash; indexed by row number in
            the split.
        bad: row number -> reasons; `bad_keys` their keys.
        histogram: (3, 256) int64, pixels of the pictures per channel and grey level.
        tokens: caption ids, (n, L) int32, once the parent has made them.
    """

    job: Job
    rows: pd.DataFrame
    bad: dict[int, list[str]]
    bad_keys: dict[int, str | None]
    histogram: np.ndarray
    tokens: torch.Tensor | None = None


@dataclass(frozen=True)
class Work:
    """What all jobs of a run share."""

    source: Source
    classes: list[ClassInfo]
    folder: Path
    image_size: int

    def __call__(self, job: Job) -> Shard:
        return make_shard(self, job)


def prepare(folder: Path, data: DataParams, seed: int, workers: int | None = None) -> dict[str, Any]:
    """Write the prepared data to `folder` and return its statistics; the folder appears only when it is whole.

    Args:
        seed: of rendered sources.
        workers: processes; None for as many as cores.

    Raises:
        ValueError: a split has more broken rows than `data.max_bad_fraction`, or no good ones.
    """
    return prepare_source(folder, open_source(data, seed), data, workers)


def prepare_source(folder: Path, source: Source, data: DataParams, workers: int | None = None) -> dict[str, Any]:
    """`prepare` for any source."""
    classes = source.classes()
    for split in SPLITS:
        if source.length(split) == 0:
            raise ValueError(f"data.source={data.source} has no {split} rows; training and evaluation need both splits.")
    with folder_aside(folder) as aside:
        work = Work(source, classes, aside, data.image_size)
        jobs = [
            Job(split, start // data.shard_samples, start, min(start + data.shard_samples, source.length(split)), {})
            for split in SPLITS
            for start in range(0, source.length(split), data.shard_samples)
        ]
        shards = _make_all(work, jobs, workers, data.context_length)
        _refuse_if_bad(shards, data.max_bad_fraction)
        facts = statistics(shards, classes)
        for split in SPLITS:
            _write_split(aside, split, shards)
        _write_quarantine(aside, shards)
        save_json(aside / "classes.json", [asdict(entry) for entry in classes])
        save_json(aside / "statistics.json", facts)
        about = {"source": data.source, "image_size": data.image_size, "store_size": data.image_size}
        write_manifest(aside, {**about, "context_length": data.context_length, "num_classes": len(classes)})
    return facts


def make_shard(work: Work, job: Job) -> Shard:
    """Check the rows of a job, and write those that keep the contract to its tar."""
    import pandas as pd

    rows = list(work.source.rows(job.split, job.start, job.stop))
    ready = [pictures.prepare(row.image, work.image_size) for row in rows]
    frame = _frame(rows, job.start).assign(
        decodes=[picture is not None for picture in ready],
        short_side=pd.array([picture and picture.short_side for picture in ready], dtype="Int64"),
    )
    bad = contract.broken(contract.row_schema([entry.name for entry in work.classes]), frame)
    for number, reasons in job.dropped.items():
        bad[number] = sorted({*bad.get(number, []), *reasons})
    bad = dict(sorted(bad.items()))

    pairs = zip(rows, ready, strict=True)
    kept = [(row, picture) for number, (row, picture) in enumerate(pairs, job.start) if number not in bad and picture]
    samples = ((str(row.key), picture.suffix, picture.data, _about(row)) for row, picture in kept)
    offsets, lengths = write_shard(work.folder / tar_name(job.split, job.number), samples)
    table = frame.drop(index=list(bad))[["key", "caption", "label", "class_name"]].astype({"label": "int64"})
    table["caption"] = table["caption"].str.strip()
    for name in sorted({name for row, _ in kept for name in row.factors}):
        table[name] = [row.factors.get(name) for row, _ in kept]
    table["offset"], table["length"] = np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int32)
    table["height"] = table["width"] = np.int32(work.image_size)
    table["image_hash"] = pd.array([hashlib.sha256(picture.pixels).hexdigest() for _, picture in kept], dtype="string")
    histogram = sum((picture.histogram for _, picture in kept), np.zeros((3, 256), dtype=np.int64))
    return Shard(job, table, bad, {number: rows[number - job.start].key for number in bad}, histogram)


def _frame(rows: list[Row], start: int) -> pd.DataFrame:
    import pandas as pd

    kinds = {"key": "string", "caption": "string", "label": "Int64", "class_name": "string"}
    columns = {name: pd.array([getattr(row, name) for row in rows], dtype=kind) for name, kind in kinds.items()}
    return pd.DataFrame(columns, index=range(start, start + len(rows)))


def _about(row: Row) -> dict[str, Any]:
    return {**row.factors, "caption": (row.caption or "").strip(), "label": row.label, "class_name": row.class_name}


def _make_all(work: Work, jobs: list[Job], workers: int | None, context_length: int) -> list[Shard]:
    """All shards, in the order of the jobs; those with rows that another shard forbids are made a second time without them."""
    from tqdm import tqdm

    made: dict[tuple[str, int], Shard] = {}
    with _pool(work, min(workers or os.cpu_count() or 1, len(jobs))) as run:
        with tqdm(total=sum(job.stop - job.start for job in jobs), desc="prepare", unit="pictures", disable=None) as bar:
            for shard in run(jobs):
                made[shard.job.split, shard.job.number] = _with_tokens(shard, context_length)
                bar.update(shard.job.stop - shard.job.start)
        for shard in run(_again(list(made.values()))):
            made[shard.job.split, shard.job.number] = _with_tokens(shard, context_length)
    return list(made.values())


def _with_tokens(shard: Shard, context_length: int) -> Shard:
    """Captions are tokenized here, in one process, while the others write: loading the vocabulary costs more than using it."""
    return replace(shard, tokens=captions.tokenize(shard.rows["caption"].tolist(), context_length).to(torch.int32))


def _again(shards: list[Shard]) -> list[Job]:
    """Jobs to be made anew because the splits as wholes break the contract; a picture met in both stays in validation."""
    validation, train = (_rows(shards, split)[["key", "image_hash"]] for split in ("validation", "train"))
    bad = {"validation": contract.broken(contract.apart_schema(), validation)}
    others = validation.drop(index=list(bad["validation"]))
    bad["train"] = contract.broken(contract.apart_schema(others), train)
    dropped = [{i: bad[s.job.split][i] for i in range(s.job.start, s.job.stop) if i in bad[s.job.split]} for s in shards]
    return [replace(shard.job, dropped=rows) for shard, rows in zip(shards, dropped, strict=True) if rows]


def _rows(shards: list[Shard], split: str) -> pd.DataFrame:
    """Good rows of a split, with the number of their shard."""
    import pandas as pd

    return pd.concat([shard.rows.assign(shard=np.int32(shard.job.number)) for shard in shards if shard.job.split == split])


_shared: list[Work] = []
"""In a worker process: the work, sent once and not with every job."""


def _share(work: Work) -> None:
    _shared[:] = [work]


def _run(job: Job) -> Shard:
    return _shared[0](job)


@contextmanager
def _pool(work: Work, workers: int) -> Iterator[Callable[[list[Job]], Iterable[Shard]]]:
    """A function that makes shards, in the order of their jobs, on `workers` processes."""
    if workers == 1:
        yield lambda jobs: map(work, jobs)
        return
    context = multiprocessing.get_context("forkserver")  # imports once, then forks a process without threads
    context.set_forkserver_preload([__name__, "pandera.pandas"])
    with ProcessPoolExecutor(workers, context, initializer=_share, initargs=(work,)) as pool:
        yield lambda jobs: pool.map(_run, jobs)


def _refuse_if_bad(shards: list[Shard], most: float) -> None:
    for split in SPLITS:
        mine = [shard for shard in shards if shard.job.split == split]
        total, bad = sum(shard.job.stop - shard.job.start for shard in mine), sum(len(shard.bad) for shard in mine)
        if bad > most * total or bad == total:
            counts = ", ".join(f"{reason}: {count}" for reason, count in _reasons(mine).items())
            keys = [str(key) for shard in mine for key in shard.bad_keys.values()][:3]
            raise ValueError(
                f"{bad} of {total} {split} rows are broken ({counts}; first keys {', '.join(keys)}), "
                f"more than data.max_bad_fraction={most} allows; mend the source."
            )


def _reasons(shards: list[Shard]) -> dict[str, int]:
    counts = Counter(reason for shard in shards for reasons in shard.bad.values() for reason in reasons)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def statistics(shards: list[Shard], classes: list[ClassInfo]) -> dict[str, Any]:
    """Counts, broken rows by reason, caption lengths (ids, start and end included), class balance; channel mean and standard
    deviation of the training pictures, pixels in [0, 1]."""
    facts: dict[str, Any] = {}
    for split in SPLITS:
        mine = [shard for shard in shards if shard.job.split == split]
        tokens = torch.cat([shard.tokens for shard in mine if shard.tokens is not None]).numpy()
        lengths = np.argmax(tokens == captions.END, axis=1) + 1
        counts = np.bincount(_rows(mine, split)["label"], minlength=len(classes))
        facts[split] = {
            "rows": sum(shard.job.stop - shard.job.start for shard in mine),
            "pictures": len(tokens),
            "broken_rows": sum(len(shard.bad) for shard in mine),
            "broken": _reasons(mine),
            "caption_ids": {f"q{100 * q:02.0f}": float(np.quantile(lengths, q)) for q in (0, 0.05, 0.5, 0.95, 1)},
            "captions_filling_context": float(np.mean(lengths == tokens.shape[1])),
            "pictures_per_class": {"least": int(counts.min()), "most": int(counts.max()), "all": counts.tolist()},
        }
    histogram = sum((s.histogram for s in shards if s.job.split == "train"), np.zeros((3, 256), dtype=np.int64))
    levels = np.arange(256) / 255
    mean = histogram @ levels / histogram.sum(1)
    variance = histogram @ levels**2 / histogram.sum(1) - mean**2
    return facts | {"channel_mean": mean.round(6).tolist(), "channel_std": np.sqrt(variance).round(6).tolist()}


def _write_split(folder: Path, split: str, shards: list[Shard]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mine = [shard for shard in shards if shard.job.split == split]
    entries = []
    for shard in mine:
        name = tar_name(split, shard.job.number)
        save_tensors(folder / index_name(split, shard.job.number), _index(shard))
        entries.append(Tar(name, len(shard.rows), (folder / name).stat().st_size))
    save_json(folder / f"{split}.shards.json", [asdict(entry) for entry in entries])
    numbers = [name for name, kind in INDEX.items() if name != "label"]
    rows = _rows(shards, split).drop(columns=["shard", "image_hash", *numbers])
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    with pq.ParquetWriter(folder / f"{split}.rows.parquet", table.schema) as writer:
        for start, shard in zip(accumulate((len(shard.rows) for shard in mine), initial=0), mine, strict=False):
            if len(shard.rows):
                writer.write_table(table.slice(start, len(shard.rows)), row_group_size=len(shard.rows))


def _index(shard: Shard) -> dict[str, torch.Tensor]:
    """Where a shard's samples are and what is needed of them for training."""
    assert shard.tokens is not None
    index = {name: torch.from_numpy(shard.rows[name].to_numpy().astype(kind)) for name, kind in INDEX.items()}
    return index | {"tokens": shard.tokens}


def _write_quarantine(folder: Path, shards: list[Shard]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(s.job.split, s.bad_keys[i], "; ".join(reasons)) for s in shards for i, reasons in s.bad.items()]
    columns = [pa.array([row[i] for row in rows], pa.string()) for i in range(3)]
    pq.write_table(pa.table(columns, names=["split", "key", "reason"]), folder / "quarantine.parquet")
