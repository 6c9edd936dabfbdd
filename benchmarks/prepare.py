"""Preparing data: `python -m benchmarks.prepare --work copy` (or index), with `--workers 2` processes.

- copy: JPEGs of 500 x 375 pixels in class folders to shards with a short side of 256.
- index: tars of such JPEGs with captions, left where they are; headers, captions and hashes, no picture is decoded.

Pictures are those of `benchmarks/photographs.py`, in the page cache. Duplicates are looked for as always, so the few hundred
different ones are made unique by a comment.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from itertools import cycle, islice
from pathlib import Path

import torch

from benchmarks import measure, photographs
from vtp.config import load
from vtp.data.prepare import How, prepare
from vtp.data.shards import tar_name, write_shard

log = logging.getLogger(__name__)

WORKS = ("copy", "index")
SIZE = (375, 500)
VALIDATION = 16


def unique(image: bytes, number: int) -> bytes:
    """The same JPEG with a number in a comment after its first marker."""
    return image[:2] + b"\xff\xfe\x00\x0a" + b"%08d" % number + image[2:]


def in_folders(folder: Path, pool: list[bytes], count: int) -> list[str]:
    """Two class folders of `count` pictures and a few for validation; the parameters that name them."""
    for split, images, number in (("val", pool[:VALIDATION], VALIDATION), ("train", pool[VALIDATION:], count)):
        for i, image in enumerate(islice(cycle(images), number)):
            path = folder / split / f"class_{i % 2}" / f"{split}_{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(unique(image, i))
    return ["data.source=imagefolder", f"data.path={folder}"]


def in_tars(folder: Path, pool: list[bytes], count: int, each: int) -> list[str]:
    """Tars of `each` pictures with captions, the last of them for validation; the parameters that name them."""
    folder.mkdir()
    images = (*pool[:VALIDATION], *islice(cycle(pool[VALIDATION:]), count))
    numbered = ((f"{i:08d}", ".jpg", unique(image, i), {"caption": f"picture {i}"}) for i, image in enumerate(images))
    write_shard(folder / tar_name("validation", 0), islice(numbered, VALIDATION))
    for shard in range(count // each):
        write_shard(folder / tar_name("train", shard), islice(numbered, each))
    where = [f"data.path='{folder}/train-*.tar'", f"data.validation_path={folder}/validation-00000.tar"]
    return ["data.source=webdataset", "data.mode=index", "data.webdataset={caption: 'json:caption', label: null}", *where]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--count", type=int, default=2000, help="pictures")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as base:
        source, each = Path(base) / "source", max(1, args.count // 8)
        args.count = args.count // each * each  # equal shards
        pool = photographs.jpegs(VALIDATION + min(args.count, 200), *SIZE)
        here = in_folders(source, pool, args.count) if args.work == "copy" else in_tars(source, pool, args.count, each)
        sizes = ["data.image_size=224", "data.store_size=256", "data.train_samples=null", "data.validation_samples=null"]
        data = load([*here, *sizes, f"data.shard_samples={each}"]).data
        megabytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6

        def work() -> None:
            prepare(Path(base) / "prepared", data, 0, How(workers=args.workers))

        timing = measure.timed(work, device, warmup=1, runs=args.runs)
        facts = prepare(Path(base) / "prepared", data, 0, How(workers=args.workers))
    seconds = timing.milliseconds / 1000
    if facts["train"]["pictures"] != args.count:
        raise SystemExit(f"{args.work}: {facts['train']['pictures']} of {args.count} pictures were taken; not the same work.")
    measure.record(
        f"data-prepare-{args.work}",
        timing,
        device,
        module="benchmarks.prepare",
        ceiling_tflops=measure.ceiling(device),
        flop=0.0,
        extra={
            "workers": args.workers,
            "images_per_second": (args.count + VALIDATION) / seconds,
            "megabytes_per_second": megabytes / seconds,
            "megabytes_per_second_and_process": megabytes / seconds / args.workers,
        },
        folder=args.out,
    )


if __name__ == "__main__":
    main()
