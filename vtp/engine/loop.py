"""The one training loop. It knows tasks by their contract only: no model, no objective."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vtp import dist, stopping
from vtp.compiling import compiled as compiled_code
from vtp.compiling import written
from vtp.engine.checkpoint import Checkpoints, State
from vtp.engine.feed import Feed
from vtp.engine.flops import counted, imagined
from vtp.engine.optim import accumulate, average, clip, optimizers, parameters_of, set_rate, trained
from vtp.engine.parallel import average_gradients, compile_blocks, same_start
from vtp.engine.replay import Replay
from vtp.engine.watch import Watch, told, unmarked
from vtp.seeding import Draws
from vtp.stopping import NotFinite
from vtp.tasks.base import Backward, Batch, Phase, Report, Task
from vtp.tracking import Track

log = logging.getLogger(__name__)

Batches = Callable[[int, int], Iterator[Batch]]
"""`batches(start, stop)`: this rank's rows of the global batches of steps start, start + 1, ..., stop - 1."""

Mark = Callable[[str], None]
"""`mark(name)`: what was done since the mark before belongs to `name`."""

Picture = Callable[[str, Tensor, int], None]
"""`picture(name, (n, 3, H, W) in [0, 1], step)`: keep pictures somewhere."""


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
    watch: Watch,
    replayed: bool,
) -> State:
    """Train `task` to its last step, going on from the newest checkpoint.

    Args:
        compiled: compile blocks and marked functions.
        replayed: record a step on the GPU and replay it; see `vtp.engine.replay`.

    Returns:
        The end. Its `history` has one row of scalars for every `log_every` steps, means over those steps and over ranks.

    Raises:
        NotFinite: naming the first step and term; nothing broken is ever saved.
        ValueError: an adopted training is already past the last step of this one.
        Stopped: a signal asked for it; the step in which it came is done and saved.
    """
    task.to(device)
    state = resumed(task, checkpoints, track)
    if compiled:
        compile_blocks(task.models, *task.frozen)
    one = stepper(task, state, seed, device, replayed=replayed, mark=watch.mark)
    feed = Feed(device)
    ahead = {task.kind(step): step for step in reversed(range(state.step, task.steps))}
    costs = {task.kind(state.step - 1): state.flops} if state.flops else {}
    recent: list[tuple[int, dict[str, Tensor]]] = []
    bar = track.bar(task.steps, state.step)
    with stopping.noted() as request, compiled_code(compiled):
        for step, batch in zip(range(state.step, task.steps), watch.batches(batches(state.step, task.steps)), strict=True):
            batch = feed(batch)
            kind = task.kind(step)
            if compiled:  # all kinds before the first step: later, gradients are on in one phase only
                for other in ahead.keys() - costs.keys():
                    costs[other] = operations(task, batch, Draws(seed, ahead[other], device))
            with contextlib.nullcontext() if kind in costs else counted(state):
                recent.append((step, one(batch, step)))
            state.flops = costs.setdefault(kind, state.flops)
            watch.step()
            state.step = step + 1
            stop, last = dist.any_rank(request.made), state.step == task.steps
            save, show = stop or checkpoints.due(state.step, task.steps), last or state.step % log_every == 0
            loss = figures = None
            if save or show:
                # Numbers leave the device here only, so that the steps between queue up without waiting for it.
                state.pending += settle(recent)
                recent.clear()
            if show:
                row = means(state.pending)
                state.pending.clear()
                row["loss"] = loss = sum(task.weights[name] * value for name, value in row.items() if name in task.weights)
                state.history.append({"step": state.step, **row})
                figures = watch.row(state.flops)
                track.scalars(state.step, row | figures)
            bar.advance(task.batch, loss, told(figures) if figures else None)
            if last or state.step % picture_every == 0:
                with written():  # a few pictures now and then are not worth compiling for
                    shown = task.pictures(batch)
                for name, pictures in shown.items():
                    picture(name, pictures, state.step)
            if save:
                checkpoints.save(state)
            if stop and not last:
                bar.close()
                watch.close()
                log.info("asked to stop: step %d is saved, and the same command goes on from it", state.step)
                raise stopping.Stopped
    bar.close()
    watch.close()
    return state


def resumed(task: Task, checkpoints: Checkpoints, track: Track) -> State:
    """A training as far as it came: from its newest checkpoint, from the steps it shares with another one, or from its start.

    What another training reached is told to `track`, too, so that curves have no gap.

    Raises:
        ValueError: it is already past the last step of this one.
    """
    same_start(task.models)
    state = State(task.models.train(), optimizers(task))
    borrowed = dist.is_main() and checkpoints.borrow()
    dist.barrier()
    checkpoints.restore(state)
    if state.step > task.steps:
        raise ValueError(
            f"{checkpoints.folder} is at step {state.step}, past the last step, {task.steps}: "
            "train for longer than that, or run.fresh=true starts afresh."
        )
    for row in state.history if borrowed else ():
        track.scalars(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
    return state


def stepper(
    task: Task, state: State, seed: int, device: torch.device, *, replayed: bool, mark: Mark = unmarked
) -> Callable[[Batch, int], dict[str, Tensor]]:
    """What does one step: updates of all phases, then averages. Takes a batch on the device and the step, gives scalars.

    Raises:
        ValueError: a step cannot be recorded here.
    """

    def updates(batch: Batch, draws: Draws) -> dict[str, Tensor]:
        scalars: dict[str, Tensor] = {}
        for phase in task.phases:
            scalars |= update(task, phase, state, batch, draws, mark)
        return scalars

    if replayed and (device.type != "cuda" or dist.world() > 1):
        raise ValueError("run.replay=true needs one process with a GPU; set it to false.")
    replay = Replay(updates, seed, device) if replayed else None
    if replayed and task.kind(0) is None:
        log.info("a step of this training cannot be recorded, so that run.replay is left aside")

    def one(batch: Batch, step: int) -> dict[str, Tensor]:
        for phase in task.phases:
            set_rate(state.optimizers[phase.name], phase, step, task.steps)
        kind = task.kind(step)
        scalars = updates(batch, Draws(seed, step, device)) if replay is None or kind is None else replay(batch, step, kind)
        for pair in task.averages:
            average(pair, step)
        mark("averages")
        return scalars

    return one


def update(task: Task, phase: Phase, state: State, batch: Batch, draws: Draws, mark: Mark = unmarked) -> dict[str, Tensor]:
    """One phase of one step: its backward passes, then one optimizer step. Returns what the task reports.

    `mark` is told the name of each piece as it ends: the terms of a pass, then "optimizer".
    """
    optimizer = state.optimizers[phase.name]
    for other in state.optimizers.values():
        for parameter in parameters_of(other):
            parameter.requires_grad_(other is optimizer)
    scalars, worked = backward(task, phase, batch, draws, mark)
    if worked:
        parameters = parameters_of(optimizer)
        average_gradients(parameters)
        scalars[f"{phase.name}_gradient_norm"] = clip(parameters, phase.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
    return scalars


def backward(task: Task, phase: Phase, batch: Batch, draws: Draws, mark: Mark = unmarked) -> tuple[dict[str, Tensor], bool]:
    """The backward passes of one phase, gradients added to what is there: what the task reports, and whether there was any."""
    scalars: dict[str, Tensor] = {}
    worked = False
    # A generator's body runs inside `autocast`, the backward passes between its yields outside of it.
    passes = task.passes(phase.name, batch, draws)
    parameters = trained(phase)
    while True:
        with autocast(draws.device):
            item = next(passes, None)
        match item:
            case None:
                break
            case Report(reported):
                scalars |= reported
            case Backward():
                accumulate(item.total(), parameters)
                worked = True
                mark("_".join(item.terms))
        del item
    return scalars, worked


def operations(task: Task, batch: Batch, draws: Draws) -> int:
    """Of a step over all ranks, told from shapes: compiled code hides what it does, and run as written it takes more memory.

    Args:
        batch: this rank's rows.
    """
    with imagined(task, batch) as (copy, whole, counter):
        owned = {phase.name: trained(phase) for phase in copy.phases}
        for phase in copy.phases:
            for name, parameters in owned.items():
                for parameter in parameters:
                    parameter.requires_grad_(name == phase.name)
            backward(copy, phase, whole, draws)
    return counter.get_total_flops()


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for matrix products on a GPU, plain float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def settle(recent: list[tuple[int, dict[str, Tensor]]]) -> list[dict[str, float]]:
    """The scalars of some steps as numbers, means over ranks.

    Raises:
        NotFinite: naming the first step and term that is NaN or infinite.
    """
    settled = []
    for step, scalars in recent:
        stacked = torch.stack([value.detach().float() for value in scalars.values()]) if scalars else torch.zeros(0)
        values = dict(zip(scalars, dist.mean(stacked).tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"step {step}: {name} is {value}. The last checkpoint is good; try a lower learning rate, "
                    f"a longer warm-up or gradient clipping, and start again."
                )
        settled.append(values)
    return settled


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each name, the mean over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    having = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}
