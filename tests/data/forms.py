"""One set of pictures in the three forms that sources read, and what prepared data holds, to see that it is the same.

`python -m tests.data.forms PARQUET_FOLDER WORK_FOLDER` does it with real photographs.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vtp.config import load
from vtp.config_data import DataParams, ParquetColumns, WebDatasetMembers
from vtp.data.prepare import How, prepare
from vtp.data.shards import SPLITS

Sample = tuple[str, str, int, str, bytes]
"""Split, name (without a dot or slash), label, caption, JPEG bytes."""
log = logging.getLogger(__name__)


def folder_of(label: int) -> str:
    return f"c{label:03d}"


def write_forms(samples: Iterable[Sample], names: list[str], root: Path, per_tar: int) -> dict[str, dict[str, Any]]:
    """Write samples as parquet, as class folders and as tars; return the parameters that read each."""
    kept: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for sample in samples:
        kept[sample[0]].append(sample)
    for split, mine in kept.items():
        short = "train" if split == "train" else "val"
        keys = [f"{folder_of(label)}_{name}" for _, name, label, _, _ in mine]
        columns = {
            "key": keys,
            "image": [{"bytes": image, "path": f"{key}.jpg"} for key, (*_, image) in zip(keys, mine, strict=True)],
            "caption": [caption for _, _, _, caption, _ in mine],
            "label": [label for _, _, label, _, _ in mine],
            "class_name": [names[label] for _, _, label, _, _ in mine],
        }
        (root / "parquet").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / "parquet" / f"{short}-00000.parquet", row_group_size=500)
        for _, name, label, caption, image in mine:
            folder = root / "folders" / short / folder_of(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jpg").write_bytes(image)
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
        (root / "tars").mkdir(exist_ok=True)
        for start in range(0, len(mine), per_tar):
            with tarfile.open(root / "tars" / f"{short}-{start // per_tar:05d}.tar", "w") as tar:
                for _, name, label, caption, image in mine[start : start + per_tar]:
                    for kind, data in (("jpg", image), ("txt", caption.encode()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{folder_of(label)}/{name}.{kind}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    (root / "names.txt").write_text("".join(f"{folder_of(i)} {name}\n" for i, name in enumerate(names)), encoding="utf-8")
    (root / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    tars = {"source": "webdataset", "path": str(root / "tars/train-*.tar"), "validation_path": str(root / "tars/val-*.tar")}
    tars |= {"class_names": str(root / "labels.txt"), "webdataset": WebDatasetMembers("txt", "cls")}
    columns_of = ParquetColumns("image", "caption", "label", "class_name")
    return {
        "parquet": {"source": "parquet", "path": str(root / "parquet"), "parquet": columns_of},
        "folders": {"source": "imagefolder", "path": str(root / "folders"), "class_names": str(root / "names.txt")},
        "tars copied": tars,
        "tars indexed": {**tars, "mode": "index"},
        "tars indexed, decoded": {**tars, "mode": "index", "deep_check": True},
    }


def contents(folder: Path) -> set[tuple[str, str, int, str, str]]:
    """What prepared data holds: split, key, label, caption, sha256 of the decoded pixels, read by way of its index."""
    from vtp.artifacts import load_json, load_tensors
    from vtp.data.pictures import decode
    from vtp.data.shards import index_name

    found = set()
    for split in SPLITS:
        rows = pq.read_table(folder / f"{split}.rows.parquet").to_pylist()
        first = 0
        for number, tar in enumerate(load_json(folder / f"{split}.shards.json")):
            index = {name: column.numpy() for name, column in load_tensors(folder / index_name(split, number)).items()}
            with (folder / tar["tar"]).open("rb") as file:
                for i in range(tar["samples"]):
                    file.seek(int(index["offset"][i]))
                    pixels = np.asarray(decode(file.read(int(index["length"][i]))))
                    row = rows[first + i]
                    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
                    found.add((split, row["key"], int(index["label"][i]), row["caption"], digest))
            first += tar["samples"]
        assert first == len(rows)
    return found


def photographs(folder: Path) -> Iterator[Sample]:
    """Samples of a folder of parquet files with key, image, caption and label."""
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1000):
            for row in batch.to_pylist():
                split = "train" if file.name.startswith("train") else "validation"
                yield split, row["key"], row["label"], row["caption"], row["image"]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, root = Path(sys.argv[1]), Path(sys.argv[2])
    table = pq.read_table(sorted(source.glob("train*.parquet")), columns=["label", "class_name"]).to_pydict()
    names = dict(zip(table["label"], table["class_name"], strict=True))
    every = {"train_samples": None, "validation_samples": None, "shard_samples": 4096, "duplicate_bits": 0}
    base: DataParams = replace(load().data, **every)  # type: ignore[arg-type]
    forms = write_forms(photographs(source), [names[i] for i in range(len(names))], root, 4096)
    sets = {}
    for form, values in forms.items():
        started = time.perf_counter()
        facts = prepare(root / "prepared" / form, replace(base, **values), 0, How())
        seconds = time.perf_counter() - started
        sets[form] = contents(root / "prepared" / form)
        parts = [f"{facts[split]['pictures']} {split} (put aside: {facts[split]['broken'] or 'none'})" for split in SPLITS]
        log.info("%-22s %6.1f s  %s", form, seconds, ", ".join(parts))
    first = sets["parquet"]
    for form, found in sets.items():
        log.info(
            "%-22s %d of (split, key, label, caption, pixels), %s", form, len(found), "equal" if found == first else "DIFFERENT"
        )


if __name__ == "__main__":
    main()
