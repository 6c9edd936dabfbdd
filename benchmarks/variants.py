"""What was tried on the transformers, side by side in one process: `python -m benchmarks.variants W3-xl`.

How much of a network is compiled, how many pictures it gets at once. Prints a table, and the kernels that the last variant of a
training and the first of a use spend their time in; writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat

import torch
from torch import Tensor

from benchmarks import dit, measure, tokenizer
from vtp import sampling
from vtp.engine.inference import put_to_work
from vtp.engine.loop import autocast
from vtp.engine.parallel import compile_blocks
from vtp.models.dit import DiT
from vtp.seeding import Draws
from vtp.tasks.base import Backward
from vtp.tasks.dit import TrainDit

log = logging.getLogger(__name__)

TRAINED = {"W3-xl": (False, True), "W3-b": (False, True)}
"""Whether what lies before and after the blocks is compiled, too."""
USED = {
    "W4-encode": ((False, 1), (True, 1)),
    "W4-decode": ((False, 1), (True, 1)),
    "sample": ((False, 1), (False, 2)),
}
"""Whether the whole network is compiled and not its blocks; batches at once."""


def compile_ends(model: DiT) -> None:
    """Compile what lies before and after the blocks, too."""
    model.x_embedder.compile(dynamic=False)
    model.final_layer.compile(dynamic=False)


def kernels(work: Callable[[], object], most: int = 16) -> None:
    """Log the kernels that one call spends its time in."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    for e in events[:most]:
        share, took = 100 * e.self_device_time_total / total, e.self_device_time_total / 1e3
        log.info("  %5.1f %%  %8.2f ms  %5d x  %s", share, took, e.count, e.key[:110])


def told(timing: measure.Timing) -> str:
    spread = f"{timing.fastest:.2f}-{timing.slowest:.2f}"
    return f"{timing.milliseconds:.2f} ms ({spread}), {timing.peak_gib:.1f} GiB"


def train_variants(name: str, tiny: bool, device: torch.device) -> list[str]:
    options, rows = dit.TINY if tiny else dit.WORKS[name]
    batch = dit.random_batch(options, rows, device)
    task = TrainDit(dit.hyperparameters(rows), dit.random_dit(options, device), microbatch=16)
    task.to(device)
    for item in task.passes("dit", batch, Draws(0, 0, device)):  # float32, without autocast
        if isinstance(item, Backward):
            item.total().backward()
    precise = [p.grad.clone() for p in task.model.parameters() if p.grad is not None]
    task.model.zero_grad()
    table = []
    step: Callable[[], object] = lambda: None  # noqa: E731
    for ends in TRAINED[name]:
        label = f"{name}{' ends compiled' if ends else ''}"
        begun = time.monotonic()
        try:
            torch._dynamo.reset()
            del step, task  # their memory
            task = TrainDit(dit.hyperparameters(rows), dit.random_dit(options, device), microbatch=None)
            task.to(device)
            if ends:
                compile_ends(task.model)
            compile_blocks(task.models)
            loss, found = dit.gradients(task, batch, device)
            error = measure.relative_error(found, precise)
            del found
            step = dit.stepper(task, repeat(batch), device)
            timing = measure.timed(step, device, warmup=2, runs=6)
            line = f"{label}: {told(timing)}, gradient {error:.2e}, loss {loss.item():.5f}"
        except Exception as e:
            line = f"{label}: failed, {type(e).__name__}: {str(e)[:200]}"
        table.append(f"{line} [{time.monotonic() - begun:.0f} s]")
        log.info("%s", table[-1])
    if device.type == "cuda":
        kernels(step, 24)
    return table


def use_variants(name: str, tiny: bool, device: torch.device) -> list[str]:
    table = []
    if name == "sample":
        options, rows = (dit.TINY[0], 4) if tiny else (dit.XL, 128)
    else:
        shape, rows = (tokenizer.TINY, 4) if tiny else (tokenizer.LARGE, 128)
    work: Callable[[], Tensor]
    for other, times in USED[name]:
        label = f"{name}{' whole compiled' if other else ''} batch {rows * times}"
        begun = time.monotonic()
        try:
            torch._dynamo.reset()
            with torch.inference_mode(), autocast(device):
                if name == "sample":
                    given = dit.random_batch(options, rows * times, device)
                    model = dit.random_dit(options, device).eval().requires_grad_(False)
                    put_to_work(model, device, compiled=True)
                    flow = sampling.guided(model, given["labels"], options.num_classes, scale=1.5, interval=(0, 1))
                    work = partial(flow, given["latents"], 0.5)
                else:
                    coder = put_to_work(tokenizer.tokenizer(*shape), device, compiled=not other)
                    images = tokenizer.inputs(name, rows * times, shape[3], device)
                    work = partial(coder.encode if name == "W4-encode" else coder.decode, images)
                    if other:
                        work()  # the tables of positions are made outside of compiled regions
                        (coder.encoder if name == "W4-encode" else coder.decoder).compile(dynamic=False)
                timing = measure.timed(work, device, warmup=3, runs=12 if name == "sample" else 30)
            line = f"{label}: {told(timing)}, {1000 * rows * times / timing.milliseconds:.0f} images/s"
        except Exception as e:
            line = f"{label}: failed, {type(e).__name__}: {str(e)[:200]}"
        table.append(f"{line} [{time.monotonic() - begun:.0f} s]")
        log.info("%s", table[-1])
        if device.type == "cuda" and (other, times) == USED[name][0]:
            with torch.inference_mode(), autocast(device):
                kernels(work)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="+", choices=[*TRAINED, *USED])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tables = []
    for name in args.works:
        try:
            tables += (train_variants if name in dit.WORKS else use_variants)(name, args.tiny, device)
        except Exception as e:
            tables.append(f"{name}: failed, {type(e).__name__}: {str(e)[:300]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    log.info("ceiling %.0f TFLOP/s\n%s", measure.ceiling(device), "\n".join(tables))


if __name__ == "__main__":
    main()
