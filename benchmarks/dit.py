"""A training step of LightningDiT at full size: `python -m benchmarks.dit --work W3-xl`.

Latents of 64 x 16 x 16, 1,000 classes, velocity and cosine loss, logit-normal times, bfloat16 with float32 masters, AdamW and the
moving average every step, nothing recomputed. The step is the engine's own `update` on the task that the stage trains.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks import measure
from vtp.config import DitParams, load
from vtp.data.latents import LatentBatches, LatentStore, LatentWriter
from vtp.engine.checkpoint import State
from vtp.engine.feed import Feed
from vtp.engine.loop import autocast, update
from vtp.engine.optim import average, optimizers
from vtp.engine.parallel import compile_blocks
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.seeding import Draws, generator
from vtp.tasks.base import Backward, Batch
from vtp.tasks.dit import TrainDit

log = logging.getLogger(__name__)

XL = DitOptions(
    latent_channels=64,
    grid=16,
    patch=1,
    width=1152,
    depth=28,
    heads=16,
    mlp_ratio=4.0,
    num_classes=1000,
    qk_norm=True,
    swiglu=True,
    rope=True,
    rmsnorm=True,
    shift=True,
    learn_sigma=False,
)
WORKS = {"W3-xl": (XL, 256), "W3-b": (replace(XL, width=768, depth=12, heads=12), 512)}
TINY = (replace(XL, latent_channels=8, grid=4, width=64, depth=2, heads=2, num_classes=10), 8)
TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}
PLAIN_ROWS = 64
"""Rows that the plain form takes at once, so that it fits."""


def random_dit(options: DitOptions, device: torch.device) -> DiT:
    """A transformer whose gates and output, zero at the start of a training, are random too: every part has work to do."""
    with torch.device("meta"):
        model = DiT(options)
    model.to_empty(device=device)
    draw = generator(0, "benchmark", device=device)
    model.init_weights(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02, generator=draw)
    return model


def hyperparameters(batch: int) -> DitParams:
    """LightningDiT's: constant rate, no decay, no clipping."""
    params = load().dit
    constant = replace(
        params.optimizer, rate=2e-4, warmup=0, cooldown=0, final_rate=1.0, betas=(0.9, 0.95), weight_decay=0.0, clip=None
    )
    return replace(params, batch=batch, steps=1000, ema=0.9999, class_dropout=0.1, optimizer=constant)


def random_batch(options: DitOptions, batch: int, device: torch.device) -> Batch:
    """Normalised latents and labels."""
    draw = generator(1, "benchmark", device=device)
    shape = (batch, options.latent_channels, options.grid, options.grid)
    return {
        "latents": torch.randn(shape, generator=draw, device=device),
        "labels": torch.randint(options.num_classes, (batch,), generator=draw, device=device),
    }


def gradients(task: TrainDit, batch: Batch, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """The loss of step 0, and the gradients of all parameters, which are left cleared."""
    loss = torch.zeros((), device=device)
    passes = task.passes("dit", batch, Draws(0, 0, device))
    while True:
        with autocast(device):
            item = next(passes, None)
        if item is None:
            break
        if isinstance(item, Backward):
            total = item.total()
            total.backward()
            loss += total.detach()
    found = [parameter.grad for parameter in task.model.parameters() if parameter.grad is not None]
    task.model.zero_grad()
    return loss, found


def stepper(task: TrainDit, batches: Iterator[Batch], device: torch.device) -> Callable[[], None]:
    """One step of the training at every call."""
    state, feed = State(task.models, optimizers(task)), Feed(device)

    def step() -> None:
        update(task, task.phases[0], state, feed(next(batches)), Draws(0, state.step, device))
        for pair in task.averages:
            average(pair, state.step)
        state.step += 1

    return step


def from_shards(folder: Path, options: DitOptions, batch: int) -> LatentBatches:
    """The stage's own batches, of random latents in files."""
    writer = LatentWriter(folder, shard_samples=4 * batch)
    for part in range(8):
        given = random_batch(options, batch, torch.device("cpu"))
        writer.append(given["latents"] + part, given["latents"].flip(-1), given["labels"])
    writer.finish(statistics_samples=1000, seed=0)
    return LatentBatches(LatentStore.open(folder), batch, seed=0)


def operations(options: DitOptions, batch: int) -> float:
    """Of a forward and a backward pass of the whole batch."""
    with torch.device("meta"):
        model = DiT(options)
        inputs = (
            torch.randn(1, options.latent_channels, options.grid, options.grid),
            torch.rand(1),
            torch.zeros(1, dtype=torch.long),
        )
    return batch * measure.flop(lambda: model(*inputs).sum().backward())


def errors_against(plain: tuple[Tensor, list[Tensor]], found: tuple[Tensor, list[Tensor]], work: str) -> dict[str, float]:
    """How far loss and gradients are from those of the plain form.

    Raises:
        SystemExit: too far: it is not the same work.
    """
    (expected_loss, expected), (loss, grads) = plain, found
    errors = {
        "loss_error": measure.relative_error([loss], [expected_loss]),
        "gradient_error": measure.relative_error(grads, expected),
    }
    log.info("against the plain form: %s", errors)
    most = TOLERANCE[loss.device.type]
    for name, error in errors.items():
        if not error <= most:
            raise SystemExit(f"{work}: {name} is {error:.3g}, above {most}: not the same work.")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--tiny", action="store_true", help="a small model: does the benchmark itself work?")
    parser.add_argument("--reference", action="store_true", help="time the plain eager form as well")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options, rows = TINY if args.tiny else WORKS[args.work]
    batch = random_batch(options, rows, device)
    extra: dict[str, object] = {"batch": rows}

    def fresh(microbatch: int | None) -> TrainDit:
        task = TrainDit(hyperparameters(rows), random_dit(options, device), microbatch=microbatch)
        task.to(device)
        return task

    def milliseconds(task: TrainDit, batches: Iterator[Batch], warmup: int, runs: int) -> measure.Timing:
        return measure.timed(stepper(task, batches, device), device, warmup=warmup, runs=runs)

    plain = fresh(PLAIN_ROWS)
    expected = gradients(plain, batch, device)
    if args.reference:
        extra["plain_milliseconds"] = milliseconds(plain, repeat(batch), 2, 5).milliseconds
    del plain
    task = fresh(None)
    compile_blocks(task.models)
    extra |= errors_against(expected, gradients(task, batch, device), args.work)
    del expected
    timing = milliseconds(task, repeat(batch), 3, args.runs)
    extra["images_per_second"] = 1000 * rows / timing.milliseconds
    with TemporaryDirectory() as folder:
        batches = from_shards(Path(folder), options, rows)(0, args.runs + 3)
        extra["from_shards_milliseconds"] = milliseconds(task, batches, 3, args.runs).milliseconds
    measure.record(
        args.work,
        timing,
        device,
        module="benchmarks.dit",
        ceiling_tflops=measure.ceiling(device),
        flop=operations(options, rows),
        extra=extra,
        folder=args.out,
    )


if __name__ == "__main__":
    main()
