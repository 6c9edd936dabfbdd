"""A training as a stage runs it: the loop, with its device, checkpoints and tracker put together."""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor

from vtp import artifacts, dist
from vtp.config import RunParams
from vtp.engine.checkpoint import Checkpoints, Prefix, State
from vtp.engine.loop import Batches, fit
from vtp.engine.watch import Watch
from vtp.run import MACHINE, Run
from vtp.tasks.base import Task
from vtp.tracking import Track

log = logging.getLogger(__name__)

Machine = dict[str, str | int]


def start(how: RunParams) -> torch.device:
    """The device of `run.device` (`auto` takes a GPU where there is one), with threads set and the process group joined.

    Raises:
        ValueError: `cuda` was asked for and is not there, or its arithmetic is not what trainings are made for.
    """
    if how.threads is not None:
        torch.set_num_threads(how.threads)
    if how.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda, but torch sees no GPU; use run.device=auto or cpu.")
    if how.device == "cpu" or not torch.cuda.is_available():
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", dist.local_rank())
        torch.cuda.set_device(device)
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(
                f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic, in which matrix products run on a GPU here; "
                f"use a GPU of the Ampere generation or later, or run.device=cpu."
            )
        torch.set_float32_matmul_precision("high")
        if how.deterministic:
            repeat_bits()
    dist.start(device)
    return device


def repeat_bits() -> None:
    """From now on this process uses only GPU kernels whose bits repeat.

    No kernel is refused: where torch knows of none that repeats, it warns. Max pooling is such a case, though its windows do not
    overlap here. Fused attention would sum its gradients in any order as long as torch only warns: plain attention is used.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def train(task: Task, batches: Batches, run: Run, how: RunParams, *, seed: int, device: torch.device) -> State:
    """Train `task` from its newest checkpoint under `run.work` to its last step; returns where it ended."""
    here = _machine(device, how)
    if dist.is_main():
        _compare_machines(run, here)
    with open_track(run, how) as track:

        def picture(name: str, pictures: Tensor, step: int) -> None:
            if dist.is_main():
                # The first half above the second: originals above what became of them.
                sheet = torch.cat([torch.cat(list(row), dim=2) for row in pictures.chunk(2)], dim=1)
                track.picture(name, (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy(), step)

        end = fit(
            task,
            batches,
            seed=seed,
            device=device,
            checkpoints=Checkpoints(run.work / "checkpoints", how.save_every, prefix=_prefix(task, run, how, here)),
            track=track,
            picture=picture,
            log_every=how.log_every,
            picture_every=how.picture_every,
            compiled=how.compile,
            watch=Watch(device, task.batch, profile=how.profile, folder=run.work / "profile"),
            replayed=how.replay,
        )
        track.final({name: value for name, value in end.history[-1].items() if name != "step"})
    return end


def open_track(run: Run, how: RunParams) -> Track:
    """The tracker of a stage's run."""
    return Track.open(
        run.stage.name,
        run.key,
        main=run.main,
        variant=run.variant,
        parameters=run.parameters,
        run_name=how.name,
        tags=how.tags,
    )


def _prefix(task: Task, run: Run, how: RunParams, here: Machine) -> Prefix | None:
    """What this training shares with longer and shorter ones; those of other conditions have other bits, and are not taken."""
    end = task.steps - max(phase.optimizer.cooldown for phase in task.phases)
    return Prefix(run.shared(here), end, taken=not how.fresh) if end > 0 and not run.adopted else None


def _machine(device: torch.device, how: RunParams) -> Machine:
    """What the bits of a training depend on beside its fingerprint."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": dist.world(),
        "compile": str(how.compile),
        "microbatch": str(how.microbatch),
    }


def _compare_machines(run: Run, here: Machine) -> None:
    """Write down the conditions of a training; say so where they change in the middle of one."""
    noted = run.work / MACHINE
    before = artifacts.load_json(noted) if noted.exists() else here
    odd = [f"{name} {before.get(name)} -> {value}" for name, value in here.items() if before.get(name) != value]
    if odd:
        log.warning("this training began under other conditions (%s); it goes on, but not in the same bits", ", ".join(odd))
    artifacts.save_json(noted, here)
