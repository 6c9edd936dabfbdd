"""A step of refining the decoder against a discriminator: `python -m benchmarks.decoder --work W6`.

Our own task and engine, both phases, with pictures already on the device. Before anything is timed, what the fast form reports
and its gradients are held against the plain form of the same weights on the same batch.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import joint, measure
from benchmarks.works import parameters
from stages.pretrain import options
from vtp.compiling import compiled
from vtp.config import ROOT, Params
from vtp.engine.checkpoint import State
from vtp.engine.loop import backward, operations, stepper
from vtp.engine.optim import optimizers
from vtp.engine.parallel import compile_blocks
from vtp.engine.session import start
from vtp.models.discriminator import discriminator
from vtp.models.tokenizer import VisualTokenizer
from vtp.seeding import Draws, generator
from vtp.tasks.base import Batch
from vtp.tasks.decoder import FinetuneDecoder

log = logging.getLogger(__name__)

WORKS = ("W6",)
STAGES = 5
"""Of VGG-16, how many stages the perceptual distance sees: all."""


def task_of(params: Params, device: torch.device) -> FinetuneDecoder:
    """The task that the stage `finetune_decoder` would train, of a tokenizer that has learned nothing, on `device`."""
    tokenizer = VisualTokenizer(options(params))
    tokenizer.init_weights(generator(params.seed, "tokenizer"))
    task = FinetuneDecoder(
        params.finetune_decoder,
        tokenizer,
        discriminator(params.finetune_decoder.discriminator, generator(params.seed, "discriminator")),
        joint.perceptual(STAGES),
        image_size=params.data.image_size,
        microbatch=params.run.microbatch,
    )
    task.to(device)
    task.models.train()
    return task


def batch_of(params: Params, device: torch.device) -> Batch:
    """The pictures of the joint step's benchmark, as many as one step takes."""
    pretrain = replace(params.pretrain, batch=params.finetune_decoder.batch)
    return {"images": joint.batch_of(replace(params, pretrain=pretrain), device)["images"]}


def gradients(task: FinetuneDecoder, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What both phases of a step report, and their gradients, which are left cleared."""
    scalars: dict[str, Tensor] = {}
    found: list[Tensor] = []
    for phase in task.phases:
        task.models.requires_grad_(False)
        for module in phase.modules:
            module.requires_grad_(True)
        scalars |= backward(task, phase, batch, Draws(0, 0, batch["images"].device))[0]
        found += [p.grad for module in phase.modules for p in module.parameters() if p.grad is not None]
        task.models.zero_grad()
    return scalars, found


def errors(params: Params, device: torch.device) -> dict[str, float]:
    """How far the fast form's losses and gradients are from those of the plain form.

    Raises:
        SystemExit: too far: it is not the same work.
    """
    batch = batch_of(params, device)
    expected_scalars, expected = gradients(task_of(params, device), batch)
    task = task_of(params, device)
    compile_blocks(task.models, *task.frozen)
    with compiled(True):
        scalars, found = gradients(task, batch)
    errors = {
        "loss_error": measure.relative_error(scalars.values(), expected_scalars.values()),
        "gradient_error": measure.relative_error(found, expected),
    }
    log.info("against the plain form: %s", errors)
    most = joint.TOLERANCE[device.type]
    for name, error in errors.items():
        if not error <= most:
            raise SystemExit(f"{name} is {error:.3g}, above {most}: not the same work.")
    return errors


def timed(
    params: Params, device: torch.device, *, fast: bool, runs: int, profile: bool
) -> tuple[measure.Timing, dict[str, float]]:
    """Steps one after another, as fast as we can or as plain as they are written; and where the time goes, if asked."""
    task, batch = task_of(params, device), batch_of(params, device)
    state = State(task.models, optimizers(task))
    if fast:
        compile_blocks(task.models, *task.frozen)
    one = stepper(task, state, 0, device, replayed=fast and params.run.replay and device.type == "cuda")

    def step() -> None:
        with compiled(fast):
            one(batch, state.step)
        state.step += 1

    timing = measure.timed(step, device, warmup=6 if fast else 2, runs=runs, quiet=fast)
    return timing, measure.profile(step, device, timing) if profile else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--tiny", action="store_true", help="a small stand-in for the work, to try the command")
    parser.add_argument("--reference", action="store_true", help="time the plain form as well")
    parser.add_argument("--profile", action="store_true", help="tell where the time goes, by kind of kernel")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    params = parameters(args.work, *(["tiny"] if args.tiny else []))
    device = start(params.run)
    work = operations(task_of(params, device), batch_of(params, device), Draws(0, 0, device))
    extra: dict[str, object] = {**errors(params, device)}
    tops = measure.ceiling(device)
    timing, shares = timed(params, device, fast=True, runs=args.runs, profile=args.profile)
    log.info("%s", timing)
    extra["images_per_second"] = 1000 * params.finetune_decoder.batch / timing.milliseconds
    if args.profile:
        extra["share_by_kind"] = shares
    if args.reference:
        extra["plain_milliseconds"] = timed(params, device, fast=False, runs=args.runs, profile=False)[0].milliseconds
    measure.record(
        args.work + ("-tiny" if args.tiny else ""),
        timing,
        device,
        module="benchmarks.decoder",
        ceiling_tflops=tops,
        flop=work,
        extra=extra,
        folder=args.out or (ROOT / "runs" / "benchmarks" if args.tiny else None),
    )


if __name__ == "__main__":
    main()
