"""The joint step of pre-training: `python -m benchmarks.joint --work W1` (W1, W2 or 16k; see benchmarks/works/).

Our own task and engine, with pictures and captions already on the device. Before anything is timed, loss and gradients of the
fast form (compiled, its batch cut as the work says) are held against the plain form of the same weights on the same batch.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import measure
from benchmarks.neighbours import Neighbours
from benchmarks.works import parameters
from stages.pretrain import options
from vtp import dist
from vtp.compiling import compiled
from vtp.config import ROOT, Params
from vtp.engine.checkpoint import State
from vtp.engine.flops import counted
from vtp.engine.loop import backward, stepper
from vtp.engine.optim import optimizers
from vtp.engine.parallel import compile_blocks
from vtp.engine.session import start
from vtp.models.frozen import Perceptual, Slices
from vtp.models.tokenizer import VisualTokenizer
from vtp.seeding import Draws, forked, generator
from vtp.tasks.base import Batch
from vtp.tasks.pretrain import Pretrain

log = logging.getLogger(__name__)

VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of VGG-16's convolutions between its poolings (arXiv 1409.1556)."""

SEEN = {"W1": 5, "16k": 5, "W2": 3}
"""Of VGG-16, how many of these stages the perceptual distance of a piece of work sees."""

TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}
"""Relative error of loss and gradient that is let through: products are bfloat16 on a GPU, float32 on a CPU."""

CHECKED = ("loss_error", "gradient_error", "neighbour_error")
"""Figures that must be below it."""

BACKENDS = {
    "default": None,
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


def perceptual(stages: int) -> Perceptual:
    """LPIPS's form on the first stages of a VGG-16 with random weights, which cost the same as trained ones."""
    parts, channels, before = [], [], 3
    with forked(0, "vgg"):
        for i, widths in enumerate(VGG[:stages]):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            parts.append(nn.Sequential(*layers))
            channels.append(torch.ones(1, before, 1, 1))
    return Perceptual(Slices(parts), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), channels)


def task_of(params: Params, stages: int, device: torch.device) -> Pretrain:
    """The task that the stage `pretrain` would train, on `device`."""
    tokenizer = VisualTokenizer(options(params))
    tokenizer.init_weights(generator(params.seed, "tokenizer"))
    task = Pretrain(
        params.pretrain,
        tokenizer,
        perceptual(stages),
        image_size=params.data.image_size,
        generator=generator(params.seed, "head"),
        microbatch=params.run.microbatch,
    )
    task.to(device)
    task.models.train()
    return task


def batch_of(params: Params, device: torch.device) -> Batch:
    """Pictures with structure and noise, and captions that end somewhere; random, and the same at every call."""
    count, size, length = params.pretrain.batch, params.data.image_size, params.data.context_length
    draw = generator(0, "benchmark", device=device)
    images = torch.empty(count, 3, size, size, dtype=torch.uint8, device=device)
    for part in images.split(256):
        # Light and contrast of their own make pictures as different as they are in real data.
        light, contrast = torch.rand(2, len(part), 3, 1, 1, generator=draw, device=device)
        coarse = light + contrast * (torch.rand(len(part), 3, 8, 8, generator=draw, device=device) - light)
        smooth = F.interpolate(coarse, (size, size), mode="bilinear")
        part.copy_(255 * (0.9 * smooth + 0.1 * torch.rand(part.shape, generator=draw, device=device)))
    tokens = torch.randint(1, 49405, (count, length), generator=draw, device=device)
    tokens[:, 0] = 49406
    ends = torch.randint(length // 2, length, (count, 1), generator=draw, device=device)
    place = torch.arange(length, device=device)
    return {"images": images, "tokens": torch.where(place == ends, 49407, torch.where(place < ends, tokens, 0))}


def gradients(task: Pretrain, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a step reports, and its gradients by parameter."""
    scalars, _ = backward(task, task.phases[0], batch, Draws(0, 0, batch["images"].device))
    found = {name: p.grad for name, p in task.models.named_parameters() if p.grad is not None}
    task.models.zero_grad()
    return scalars, found


def scaled(params: Params, batch: int) -> Params:
    """The same work on another number of pictures, all three objectives in the same proportion."""
    p = params.pretrain
    parts = {key: getattr(p, key) * batch // p.batch for key in ("ssl_batch", "reconstruction_batch")}
    return replace(params, pretrain=replace(p, batch=batch, **parts))


def errors(params: Params, stages: int, device: torch.device) -> dict[str, object]:
    """Relative errors of the fast form against the plain one, for the loss, the gradient and, to look closer, its parts.

    The plain form takes the batch in four pieces, so that it fits. Where the work is cut already, two of its pieces are compared.
    Both see the same nearest neighbours; see `benchmarks.neighbours`.
    """
    chunk = params.run.microbatch
    params = params if chunk is None else scaled(params, 2 * chunk)
    batch = batch_of(params, device)
    fast = task_of(params, stages, device)
    plain = deepcopy(fast)
    plain.microbatch = params.pretrain.batch // 4
    neighbours = Neighbours()
    with neighbours.noted():
        expected_terms, expected = gradients(plain, batch)
    del plain
    compile_blocks(fast.models)
    with compiled(True), neighbours.held():
        terms, found = gradients(fast, batch)
    weights = params.pretrain.weights
    ours, theirs = (sum(weights[name] * float(value) for name, value in each.items()) for each in (terms, expected_terms))
    parts: dict[str, object] = {}
    for part in dict.fromkeys(".".join(name.split(".")[:2]) for name in expected):
        names = [name for name in expected if name.startswith(part)]
        parts[part] = measure.relative_error([found[n] for n in names], [expected[n] for n in names])
    return {
        "loss_error": abs(ours - theirs) / abs(theirs),
        "gradient_error": measure.relative_error([found[n] for n in expected], expected.values()),
        "gradient_error_of": parts,
        **neighbours.figures(),
        "terms": {name: float(value) for name, value in terms.items()},
        "expected_terms": {name: float(value) for name, value in expected_terms.items()},
    }


def flop(params: Params, stages: int, device: torch.device) -> float:
    """Operations of the undivided plain step, from one on a small part of its batch; similarities of all pairs hardly count."""
    whole = params.pretrain.batch
    params = scaled(replace(params, run=replace(params.run, microbatch=None)), min(whole, 64))
    task = task_of(params, stages, device)
    state = State(task.models, {})
    with counted(state):
        gradients(task, batch_of(params, device))
    return state.flops / dist.world() * whole / params.pretrain.batch


def step_of(params: Params, stages: int, device: torch.device, *, fast: bool) -> Callable[[Batch], object]:
    """Training steps one after another, each on the batch it is given: as fast as we can, or as plain as it is written."""
    task = task_of(params, stages, device)
    state = State(task.models, optimizers(task))
    if fast:
        compile_blocks(task.models)
    one = stepper(task, state, 0, device, replayed=fast and params.run.replay and device.type == "cuda")

    def step(batch: Batch) -> object:
        with compiled(fast):
            scalars = one(batch, state.step)
        state.step += 1
        return scalars

    return step


def measured(args: argparse.Namespace) -> bool:
    """Check, time and record one piece of work. False where the check fails; nothing is recorded then."""
    params = parameters(args.work, *(["tiny"] if args.tiny else []))
    if args.share:
        params = replace(params, pretrain=replace(params.pretrain, share_clip_view=True))
    if args.no_replay:
        params = replace(params, run=replace(params.run, replay=False))
    device, stages = start(params.run), SEEN[args.work]
    work = flop(params, stages, device)
    figures = {} if args.unchecked else errors(params, stages, device)
    clear()
    log.info("%.4g TFLOP; %s", work / 1e12, figures)
    tops = measure.ceiling(device)
    step = partial(step_of(params, stages, device, fast=True), batch_of(params, device))
    timing = measure.timed(step, device, warmup=args.warmup, runs=args.runs, quiet=True)
    log.info("%s", timing)
    figures |= {"images_per_second": 1000 * params.pretrain.batch / timing.milliseconds}
    if args.profile:
        figures["share_by_kind"] = measure.profile(step, device, timing)
    del step
    clear()
    if args.reference:
        plain = partial(step_of(params, stages, device, fast=False), batch_of(params, device))
        figures["reference"] = asdict(measure.timed(plain, device, warmup=2, runs=args.runs, quiet=False))
    tolerance = TOLERANCE[device.type]
    good = all(isinstance(e, float) and e < tolerance for e in map(figures.get, CHECKED))
    name = args.work + ("-shared" if args.share else "") + ("-tiny" if args.tiny else "")
    folder = args.out or (ROOT / "runs" / "benchmarks" if args.tiny else None)
    if good:
        measure.record(
            name, timing, device, module="benchmarks.joint", ceiling_tflops=tops, flop=work, extra=figures, folder=folder
        )
    else:
        log.error("%s is not recorded: its error is above %g, or was not looked at", name, tolerance)
    return good


def clear() -> None:
    """Give back what earlier work has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=sorted(SEEN), required=True)
    parser.add_argument("--tiny", action="store_true", help="a small stand-in for the work, to try the command")
    parser.add_argument("--reference", action="store_true", help="time the plain form as well")
    parser.add_argument("--profile", action="store_true", help="tell where the time goes, by kind of kernel")
    parser.add_argument("--unchecked", action="store_true", help="time only; nothing is recorded")
    parser.add_argument("--attention", choices=sorted(BACKENDS), default="default")
    parser.add_argument("--warmup", type=int, default=6, help="steps before the timed ones; a recorded step needs 5")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--no-replay", action="store_true", help="time steps as they are launched, not a recorded one")
    parser.add_argument("--share", action="store_true", help="reconstruct the clip view from its own features")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    backends = BACKENDS[args.attention]
    with contextlib.nullcontext() if backends is None else sdpa_kernel(backends, set_priority=True):
        sys.exit(0 if measured(args) else 1)


if __name__ == "__main__":
    main()
