"""Checkpoints: weights, optimizer state, step and curves, as safetensors and JSON; written aside, verified on load.

Random numbers need no state of their own: they are functions of (seed, purpose, step).

Before its cool-down a training does not know how long it will be, so runs of different lengths share their beginning: each keeps
the checkpoint with which its cool-down starts, and a longer run goes on from there.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtp import artifacts, dist
from vtp.lock import Lock

log = logging.getLogger(__name__)


@dataclass
class State:
    """Where a training is: everything that has to survive it being killed."""

    models: nn.Module
    optimizers: dict[str, torch.optim.AdamW]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[dict[str, float]] = field(default_factory=list)
    """Scalars of the steps since the last row of `history`."""
    flops: int = 0
    """Floating point operations of the matrix products of one step of the global batch; 0 until the first step is done."""


@dataclass(frozen=True)
class Prefix:
    """What runs of different lengths share.

    Attributes:
        folder: their checkpoints, one at the step where each one's cool-down began.
        end: step at which this run's own cool-down begins.
        taken: False: this run leaves its checkpoint there for others, and takes none.
    """

    folder: Path
    end: int
    taken: bool = True

    def newest(self) -> Path | None:
        """The latest whole checkpoint that this run may go on from."""
        for folder in reversed(_steps(self.folder)):
            if _step(folder) <= self.end:
                try:
                    artifacts.read_manifest(folder)
                except artifacts.BrokenArtifact as error:
                    log.warning("skipping a broken shared checkpoint: %s", error)
                    continue
                return folder
        return None


class Checkpoints:
    """The checkpoints of one run below `folder`, of which the newest `keep` stay, and what it shares with others."""

    def __init__(self, folder: Path, every: int, keep: int = 2, prefix: Prefix | None = None) -> None:
        self.folder, self.every, self.keep, self.prefix = folder, every, keep, prefix

    def due(self, step: int, steps: int) -> bool:
        """Whether the state after `step` steps is to be kept."""
        return step % self.every == 0 or step == steps or (self.prefix is not None and step == self.prefix.end)

    def save(self, state: State) -> None:
        """Write the state of rank 0; all ranks hold the same."""
        if dist.is_main():
            own = self.folder / f"step-{state.step:08d}"
            # A process killed while it wrote leaves a hidden folder, as large as a checkpoint; nobody else writes here.
            for old in self.folder.glob(".step-*"):
                artifacts.remove(old)
            with artifacts.folder_aside(own) as temporary:
                artifacts.save_tensors(temporary / "models.safetensors", state.models.state_dict())
                artifacts.save_tensors(temporary / "optimizers.safetensors", _flatten(state))
                curves = {"rows": state.history, "pending": state.pending, "flops": state.flops}
                artifacts.save_json(temporary / "history.json", curves)
                artifacts.write_manifest(temporary, {"step": state.step})
                artifacts.settle(temporary)
            if self.prefix is not None and state.step == self.prefix.end:
                with Lock(self.prefix.folder / "lock").held():
                    _copy(own, self.prefix.folder)
            for old in _steps(self.folder)[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()

    def borrow(self) -> bool:
        """Take over the newest shared checkpoint where it is ahead of this run's own; from then on it is one of them."""
        shared = self.prefix.newest() if self.prefix and self.prefix.taken else None
        if shared is None or _step(shared) <= max(map(_step, _steps(self.folder)), default=0):
            return False
        log.info("the first %d steps are those of an earlier run that differs in its length only", _step(shared))
        _copy(shared, self.folder)
        return True

    def restore(self, state: State) -> None:
        """Go on from the newest whole checkpoint, or from the start where there is none.

        Raises:
            BrokenArtifact: checkpoints exist, but none of them is whole.
        """
        found = _steps(self.folder)
        problem: artifacts.BrokenArtifact | None = None
        for folder in reversed(found):
            try:
                manifest = artifacts.read_manifest(folder)
            except artifacts.BrokenArtifact as error:
                problem = problem or error
                log.warning("skipping a broken checkpoint: %s", error)
                continue
            self._load(folder, manifest["step"], state)
            return
        if problem:
            raise artifacts.BrokenArtifact(f"{problem} No other checkpoint is whole; run.fresh=true starts afresh.")

    def _load(self, folder: Path, step: int, state: State) -> None:
        tensors = artifacts.load_tensors(folder / "models.safetensors")
        _same_shapes(folder, tensors, state.models.state_dict())
        state.models.load_state_dict(tensors)
        _unflatten(state, artifacts.load_tensors(folder / "optimizers.safetensors"))
        curves = artifacts.load_json(folder / "history.json")
        state.history[:], state.pending[:], state.flops = curves["rows"], curves["pending"], curves["flops"]
        state.step = step
        log.info("going on from step %d of %s", step, folder)


def _steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-*")) if folder.exists() else []


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _copy(checkpoint: Path, into: Path) -> None:
    with artifacts.folder_aside(into / checkpoint.name) as temporary:
        shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
        artifacts.settle(temporary)


def _same_shapes(folder: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse the checkpoint of another model in one line, where torch would take a page."""
    theirs, ours = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (found, wanted))
    odd = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if odd:
        name = odd[0]
        raise artifacts.BrokenArtifact(
            f"{folder} is the checkpoint of another model: {len(odd)} tensors differ, the first is {name} "
            f"({theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here); run.fresh=true starts afresh."
        )


def _names(state: State) -> dict[int, str]:
    return {id(p): name for name, p in state.models.named_parameters()}


def _flatten(state: State) -> dict[str, Tensor]:
    names = _names(state)
    return {
        f"{phase}/{names[id(parameter)]}/{key}": value
        for phase, optimizer in state.optimizers.items()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _unflatten(state: State, tensors: dict[str, Tensor]) -> None:
    for phase, optimizer in state.optimizers.items():
        names = _names(state)
        values: dict[int, dict[str, Any]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            prefix = f"{phase}/{names[id(parameter)]}/"
            # Copies: the file is mapped into memory, and could not be deleted from a shared disk as long as it is.
            own = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
            if own:
                values[i] = own
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
