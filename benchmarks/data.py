"""Pictures on their way to the model: `python -m benchmarks.data --part loader` (several, or all).

- decode: stored JPEG to a square of pixels, on one core.
- loader: JPEG shards to CLIP views of all pictures and self-distillation crops of a quarter of them, on the device.
- views: the same views from pictures that are on the device already, against torchvision's transforms picture by picture.
- resume: the first batch after opening a set of 1,000 shards in the middle of an epoch.
- step: training steps (W1 of benchmarks/joint.py: VTP-B at 256 px) on these data, and on one batch that stays on the device.

Pictures are those of `benchmarks/photographs.py`, made anew at every run; at 256 px they are stored with a short side of 320.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks import measure, photographs
from vtp.config import ViewParams
from vtp.data.batches import Batch, Batches
from vtp.data.decode import square
from vtp.data.shards import Split
from vtp.data.views import clip_view, global_crops, local_crops
from vtp.seeding import Draws

log = logging.getLogger(__name__)

PARTS = ("decode", "loader", "views", "resume", "step")


@dataclass(frozen=True)
class Kind:
    """Pictures of one size: the model's, the stored form's (height, width), shards and samples a shard, pictures of a batch."""

    image_size: int
    stored: tuple[int, int]
    shards: int
    samples: int
    batch: int
    views: ViewParams

    @property
    def store_size(self) -> int:
        return min(self.stored)


def _views(image_size: int, local_size: int, local_crops: int) -> ViewParams:
    """DINOv2's recipe at this size."""
    return ViewParams(
        clip_scale=(0.9, 1.0),
        reconstruction_scale=(0.6, 1.0),
        global_size=image_size,
        global_scale=(0.32, 1.0),
        local_size=local_size,
        local_scale=(0.05, 0.32),
        local_crops=local_crops,
        jitter=0.8,
        grayscale=0.2,
        blur=(0.5, 0.1, 0.5),
        solarize=0.2,
    )


KINDS = {
    64: Kind(64, (64, 64), shards=64, samples=1000, batch=2048, views=_views(64, 32, 8)),
    256: Kind(256, (320, 427), shards=16, samples=500, batch=512, views=_views(256, 112, 8)),
}
TINY = {64: Kind(64, (64, 64), shards=3, samples=40, batch=16, views=_views(64, 32, 2))}


def all_views(images: Tensor, draws: Draws, kind: Kind) -> list[Tensor]:
    """CLIP views of all pictures, global and local crops of every fourth."""
    total = len(images)
    few = images[: total // 4]
    return [
        clip_view(images, draws, total, kind.views, size=kind.image_size).of(),
        global_crops(few, draws, total // 4, kind.views).of(),
        local_crops(few, draws, total // 4, kind.views).of(),
    ]


def torchvision_views(kind: Kind) -> Callable[[Tensor], list[Tensor]]:
    """The same views as torchvision's transforms make them, one picture after the other: uint8 (B, 3, H, W) on any device."""
    views, bicubic = kind.views, v2.InterpolationMode.BICUBIC
    to_float = v2.ToDtype(torch.float32, scale=True)

    def crops(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale, interpolation=bicubic, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], views.jitter),
                v2.RandomGrayscale(views.grayscale),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                v2.RandomSolarize(128, solarize),
                to_float,
            ]
        )

    clip = v2.Compose([v2.RandomResizedCrop(kind.image_size, views.clip_scale, interpolation=bicubic, antialias=True), to_float])
    first = crops(views.global_size, views.global_scale, views.blur[0], 0.0)
    second = crops(views.global_size, views.global_scale, views.blur[1], views.solarize)
    local = crops(views.local_size, views.local_scale, views.blur[2], 0.0)

    def work(images: Tensor) -> list[Tensor]:
        made = [clip(image) for image in images]
        for image in images[: len(images) // 4]:
            made += [first(image), second(image), *(local(image) for _ in range(views.local_crops))]
        return made

    return work


def decode(kind: Kind) -> tuple[measure.Timing, dict[str, object]]:
    """Microseconds of one core for a stored picture."""
    data = photographs.jpegs(32, *kind.stored)
    out = torch.empty(3, kind.store_size, kind.store_size, dtype=torch.uint8)

    def work() -> None:
        for image in data:
            square(image, kind.store_size, out)

    timing = measure.timed(work, torch.device("cpu"), warmup=2, runs=20)
    size = sum(map(len, data)) / len(data)
    return timing, {"microseconds_per_image": 1000 * timing.milliseconds / len(data), "bytes_per_image": size}


def loader(kind: Kind, device: torch.device, workers: int, steps: int) -> tuple[measure.Timing, dict[str, object]]:
    """Batches from the disk to views on the device; the page cache is warm, since the shards have just been written."""
    extra: dict[str, object] = {"batch": kind.batch, "workers": workers, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prepare"
        pool = photographs.jpegs(min(256, kind.samples), *kind.stored)
        photographs.write(
            data, pool, shards=kind.shards, samples=kind.samples, image_size=kind.image_size, store_size=kind.store_size
        )
        split = Split(data, "train")
        batches = Batches(split, batch=kind.batch, seed=0, workers=workers)
        for name, work in (("loaded", _moved), ("viewed", _viewed(kind))):
            stream = batches(0, steps + 10)
            begun = time.perf_counter()
            work(next(stream), 0, device)
            extra[f"first_batch_seconds_{name}"] = time.perf_counter() - begun
            timing = _paced(stream, work, device, warmup=9, runs=steps)
            extra[f"images_per_second_{name}"] = 1000 * kind.batch / timing.milliseconds
    return timing, extra


def _moved(batch: Batch, step: int, device: torch.device) -> Tensor:
    return batch["images"].to(device, non_blocking=True)


def _viewed(kind: Kind) -> Callable[[Batch, int, torch.device], object]:
    return lambda batch, step, device: all_views(_moved(batch, step, device), Draws(0, step, device), kind)


def _paced(
    stream: Iterator[Batch], work: Callable[[Batch, int, torch.device], object], device: torch.device, *, warmup: int, runs: int
) -> measure.Timing:
    """What a batch takes when they come one after the other: the mean, since a median would hide the ones waited for."""
    took = []
    for step in range(warmup + runs):
        if step == warmup:
            _wait(device)
            begun = last = time.perf_counter()
        work(next(stream), step, device)
        if step >= warmup:
            took.append(1000 * (time.perf_counter() - last))
            last = time.perf_counter()
    _wait(device)
    mean = 1000 * (time.perf_counter() - begun) / runs
    return measure.Timing(mean, min(took), max(took), runs, _peak(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def views(kind: Kind, device: torch.device, runs: int) -> tuple[measure.Timing, dict[str, object]]:
    """Ours for a whole batch, torchvision's for some of its pictures."""
    few = min(64, kind.batch)
    images = torch.stack([torch.from_numpy(photographs.pixels(i, kind.store_size, kind.store_size)) for i in range(few)])
    images = images.permute(0, 3, 1, 2).contiguous().to(device)
    batch = images.repeat(-(-kind.batch // few), 1, 1, 1)[: kind.batch]
    steps = iter(range(10**9))
    timing = measure.timed(lambda: all_views(batch, Draws(0, next(steps), device), kind), device, warmup=3, runs=runs)
    theirs = torchvision_views(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = measure.timed(lambda: theirs(images), device, warmup=1, runs=3)
    ours, reference = 1000 * kind.batch / timing.milliseconds, 1000 * few / plain.milliseconds
    return timing, {
        "batch": kind.batch,
        "images_per_second": ours,
        "images_per_second_torchvision": reference,
        "times_torchvision": ours / reference,
        "crops_per_image": 1 + (2 + kind.views.local_crops) / 4,
    }


def resume(shards: int, samples: int, device: torch.device, workers: int) -> tuple[measure.Timing, dict[str, object]]:
    """Open the set and fetch the batch in the middle of the second epoch, several times, each with fresh loading processes."""
    kind = KINDS[64]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prepare"
        pool = photographs.jpegs(min(64, samples), *kind.stored)
        photographs.write(data, pool, shards=shards, samples=samples, image_size=64, store_size=64)
        step = int(1.5 * shards * samples) // 256

        def first() -> None:
            stream = Batches(Split(data, "train"), batch=256, seed=0, workers=workers)(step, step + 1000)
            _moved(next(stream), step, device)
            _wait(device)
            begun = time.perf_counter()
            stream.close()  # type: ignore[attr-defined]
            ended.append(time.perf_counter() - begun)

        ended: list[float] = []
        timing = measure.timed(first, torch.device("cpu"), warmup=1, runs=3)
        seconds = timing.milliseconds / 1000 - sorted(ended)[len(ended) // 2]
    return timing, {
        "shards": shards,
        "samples": shards * samples,
        "step": step,
        "workers": workers,
        "first_batch_seconds": seconds,
    }


def step(device: torch.device, workers: int, steps: int, *, tiny: bool) -> tuple[measure.Timing, dict[str, object]]:
    """Steps on real data; before and after them, the same training on tensors."""
    from benchmarks import joint  # the other parts need none of the models
    from benchmarks.works import parameters

    params = parameters("W1", *(["tiny"] if tiny else []))
    size, count = params.data.image_size, params.pretrain.batch
    stored = size * 5 // 4
    train = joint.step_of(params, joint.SEEN["W1"], device, fast=device.type == "cuda")

    def work(batch: Batch, step: int, device: torch.device) -> None:
        train({name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()})

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prepare"
        pool = photographs.jpegs(min(256, 4 * count), stored, stored * 4 // 3)
        shards = 16 if not tiny else 2
        photographs.write(data, pool, shards=shards, samples=count, image_size=size, store_size=stored)
        split = Split(data, "train")
        batches = Batches(split, batch=count, seed=0, workers=workers)
        held = {name: value.to(device) for name, value in split.rows(torch.arange(count), stored).items()}
        held["tokens"] = held["tokens"][:, : params.data.context_length]
        streams = (itertools.repeat(held), _cut(batches(0, steps + 6), params.data.context_length), itertools.repeat(held))
        before, real, after = (_paced(stream, work, device, warmup=6, runs=steps) for stream in streams)
    synthetic = (before.milliseconds + after.milliseconds) / 2
    return real, {
        "batch": count,
        "workers": workers,
        "milliseconds_on_tensors": [before.milliseconds, after.milliseconds],
        "images_per_second": 1000 * count / real.milliseconds,
        "share_of_speed_on_tensors": synthetic / real.milliseconds,
    }


def _cut(stream: Iterator[Batch], context: int) -> Iterator[Batch]:
    """Captions as short as a small model takes them."""
    for batch in stream:
        yield {**batch, "tokens": batch["tokens"][:, :context]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tiny", action="store_true", help="few small pictures: does the benchmark itself work?")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceiling = measure.ceiling(device)
    kinds = TINY if args.tiny else KINDS
    work: dict[str, Callable[[], tuple[measure.Timing, dict[str, object]]]] = {}
    for size, kind in kinds.items():
        work[f"decode-{size}"] = lambda kind=kind: decode(kind)  # type: ignore[misc]
        work[f"views-{size}"] = lambda kind=kind: views(kind, device, args.steps)  # type: ignore[misc]
        work[f"loader-{size}"] = lambda kind=kind: loader(kind, device, args.workers, args.steps)  # type: ignore[misc]
    work["step"] = lambda: step(device, args.workers, args.steps // 3, tiny=args.tiny)
    work["resume"] = lambda: resume(20 if args.tiny else 1000, 100, device, args.workers)
    for name, run in work.items():
        if name.split("-")[0] in (args.part or PARTS):
            timing, extra = run()
            measure.record(
                f"data-{name}",
                timing,
                device,
                module="benchmarks.data",
                ceiling_tflops=ceiling,
                flop=0.0,
                extra=extra,
                folder=args.out,
            )


if __name__ == "__main__":
    main()
