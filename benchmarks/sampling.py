"""Sampling from LightningDiT-XL/1 with guidance: `python -m benchmarks.sampling` (W5).

250 Euler steps, guidance at every one, as the stage `sample` takes them. All steps cost the same, so the first of them are timed
and the result is scaled; `--solver adams2 --points 51` times another choice, all of it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.dit import TINY, XL, operations, random_batch, random_dit
from vtp import sampling
from vtp.engine.inference import put_to_work
from vtp.engine.loop import autocast

log = logging.getLogger(__name__)

TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model: does the benchmark itself work?")
    parser.add_argument("--reference", action="store_true", help="time the plain eager form as well")
    parser.add_argument("--batch", type=int, default=128, help="pictures at once; the model sees twice as many rows")
    parser.add_argument("--solver", choices=sampling.SOLVERS, default="euler")
    parser.add_argument("--points", type=int, default=251)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--name", default="W5", help="of the file of results")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options, batch = (TINY[0], 4) if args.tiny else (XL, args.batch)
    grid = sampling.time_grid(args.points, 1.0)
    timed_steps = min(args.steps, args.points - 1)
    model = random_dit(options, device).eval().requires_grad_(False)
    given = random_batch(options, batch, device)
    noise, labels = given["latents"], given["labels"]
    evaluations = 0

    def flow(rows: slice = slice(None)) -> sampling.Velocity:
        velocity = sampling.guided(model, labels[rows], options.num_classes, scale=1.5, interval=(0.0, 1.0))

        def counted(x: torch.Tensor, t: float) -> torch.Tensor:
            nonlocal evaluations
            evaluations += 1
            return velocity(x, t)

        return counted

    def work() -> torch.Tensor:
        return sampling.integrate(flow(), noise, grid[: timed_steps + 1], args.solver)

    extra: dict[str, object] = {"batch": batch, "solver": args.solver, "points": args.points, "timed_steps": timed_steps}
    share = timed_steps / (args.points - 1)
    with torch.inference_mode():
        parts = [slice(start, start + 16) for start in range(0, batch, 16)]
        expected = torch.cat([flow(rows)(noise[rows], 0.5) for rows in parts])  # float32, TF32 on a GPU
    with torch.inference_mode(), autocast(device):
        if args.reference:
            step = measure.timed(lambda: flow()(noise, 0.5), device, warmup=1, runs=3).milliseconds
            extra["plain_milliseconds_an_evaluation"] = step
        put_to_work(model, device, compiled=True)
        extra["error_against_float32"] = error = measure.relative_error([flow()(noise, 0.5)], [expected])
        if not error <= TOLERANCE[device.type]:
            raise SystemExit(f"{args.name}: the error is {error:.3g}, above {TOLERANCE[device.type]}: not the same work.")
        flow()(noise, 0.5)
        evaluations = 0
        timing = measure.timed(work, device, warmup=0, runs=3)
    extra["evaluations"] = round(evaluations / timing.runs / share)
    extra["milliseconds_an_evaluation"] = timing.milliseconds * timing.runs / evaluations
    extra["images_per_second"] = 1000 * batch * share / timing.milliseconds
    measure.record(
        args.name,
        timing,
        device,
        module="benchmarks.sampling",
        ceiling_tflops=measure.ceiling(device),
        flop=operations(options, 2 * batch) / 3 * evaluations / timing.runs,
        extra=extra,
        folder=args.out,
    )


if __name__ == "__main__":
    main()
