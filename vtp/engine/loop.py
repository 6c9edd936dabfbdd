"""The one training loop. It knows tasks by their contract only: no model, no objective."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vtp import dist
from vtp.engine.checkpoint import Checkpoints, State
from vtp.engine.optim import average, clip, optimizers, parameters_of, set_rate
from vtp.engine.parallel import average_gradients, compile_blocks, same_start
from vtp.seeding import Draws
from vtp.tasks.base import Backward, Batch, Phase, Report, Task
from vtp.tracking import Track

log = logging.getLogger(__name__)

Batches = Callable[[int, int], Iterator[Batch]]
"""`batches(start, stop)`: this rank's rows of the global batches of steps start, start + 1, ..., stop - 1."""


Picture = Callable[[str, Tensor, int], None]
"""`picture(name, (n, 3, H, W) in [0, 1], step)`: keep pictures somewhere."""


class NotFinite(ValueError):
    """A loss term became NaN or infinite."""


def fit(
    task: Task,
    batches: Batches,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints,
    track: Track,
    picture: Picture,
    log_every: int,
    picture_every: int,
    compiled: bool,
) -> list[dict[str, float]]:
    """Train `task` to its last step, going on from the newest checkpoint.

    Returns:
        The curves: one row of scalars for every `log_every` steps, means over those steps and over ranks.

    Raises:
        NotFinite: naming the first step and term; nothing broken is ever saved.
    """
    task.to(device)
    same_start(task.models)
    state = State(task.models.train(), optimizers(task))
    checkpoints.restore(state)
    if compiled:
        compile_blocks(task.models)
    pending: list[tuple[int, dict[str, Tensor]]] = []
    bar = track.bar(task.steps, state.step)
    for step, batch in zip(range(state.step, task.steps), batches(state.step, task.steps), strict=True):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        draws = Draws(seed, step, device)
        scalars: dict[str, Tensor] = {}
        for phase in task.phases:
            scalars |= update(task, phase, state, batch, draws)
        for pair in task.averages:
            average(pair, step)
        state.step = step + 1
        pending.append((step, scalars))
        loss = None
        save = checkpoints.due(state.step, task.steps)
        if save or state.step % log_every == 0:
            # Numbers leave the device here only, so that the steps between queue up without waiting for it.
            row = settle(pending)
            pending.clear()
            row["loss"] = loss = sum(task.weights[name] * value for name, value in row.items() if name in task.weights)
            state.history.append({"step": state.step, **row})
            track.scalars(state.step, row)
        bar.advance(task.batch, loss)
        if state.step % picture_every == 0 or state.step == task.steps:
            for name, pictures in task.pictures(batch).items():
                picture(name, pictures, state.step)
        if save:
            checkpoints.save(state)
    bar.close()
    return state.history


def update(task: Task, phase: Phase, state: State, batch: Batch, draws: Draws) -> dict[str, Tensor]:
    """One phase of one step: its backward passes, then one optimizer step. Returns what the task reports."""
    optimizer = state.optimizers[phase.name]
    for other in state.optimizers.values():
        for parameter in parameters_of(other):
            parameter.requires_grad_(other is optimizer)
    scalars: dict[str, Tensor] = {}
    worked = False
    # A generator's body runs inside `autocast`, the backward passes between its yields outside of it.
    passes = task.passes(phase.name, batch, draws)
    while True:
        with autocast(draws.device):
            item = next(passes, None)
        match item:
            case None:
                break
            case Report(reported):
                scalars |= reported
            case Backward():
                item.total().backward()
                worked = True
        del item
    if worked:
        parameters = parameters_of(optimizer)
        average_gradients(parameters)
        scalars[f"{phase.name}_gradient_norm"] = clip(parameters, phase.optimizer.clip)
        set_rate(optimizer, phase.optimizer, draws.step, task.steps)
        optimizer.step()
        optimizer.zero_grad()
    return scalars


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for matrix products on a GPU, plain float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def settle(pending: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """Means of the pending scalars over steps and ranks.

    Raises:
        NotFinite: naming the first step and term that is NaN or infinite.
    """
    names = list(dict.fromkeys(name for _, scalars in pending for name in scalars))
    sums = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    for step, scalars in pending:
        if not scalars:
            continue
        values = dist.mean(torch.stack([value.detach().float() for value in scalars.values()])).tolist()
        for name, value in zip(scalars, values, strict=True):
            if value != value or value in (float("inf"), float("-inf")):
                raise NotFinite(
                    f"step {step}: {name} is {value}. The last checkpoint is good; try a lower learning rate, "
                    f"a longer warm-up or gradient clipping, and start again."
                )
            sums[name] += value
            counts[name] += 1
    return {name: sums[name] / counts[name] for name in names}
