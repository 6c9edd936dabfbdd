"""Checkpoints: weights, optimizer state, step and curves, as safetensors and JSON; written aside, verified on load.

Random numbers need no state of their own: they are functions of (seed, purpose, step).
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


class Checkpoints:
    """The checkpoints of one run below `folder`; the newest `keep` stay."""

    def __init__(self, folder: Path, every: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def due(self, step: int, steps: int) -> bool:
        """Whether the state after `step` steps is to be kept."""
        return step % self.every == 0 or step == steps

    def save(self, state: State) -> None:
        """Write the state of rank 0; all ranks hold the same."""
        if dist.is_main():
            with artifacts.folder_aside(self.folder / f"step-{state.step:08d}") as temporary:
                artifacts.save_tensors(temporary / "models.safetensors", state.models.state_dict())
                artifacts.save_tensors(temporary / "optimizers.safetensors", _flatten(state))
                artifacts.save_json(temporary / "history.json", {"rows": state.history, "pending": state.pending})
                artifacts.write_manifest(temporary, {"step": state.step})
            for old in self._found()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()

    def restore(self, state: State) -> None:
        """Go on from the newest whole checkpoint, or from the start where there is none.

        Raises:
            BrokenArtifact: checkpoints exist, but none of them is whole.
        """
        found = self._found()
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
            raise problem

    def _load(self, folder: Path, step: int, state: State) -> None:
        tensors = artifacts.load_tensors(folder / "models.safetensors")
        _same_shapes(folder, tensors, state.models.state_dict())
        state.models.load_state_dict(tensors)
        _unflatten(state, artifacts.load_tensors(folder / "optimizers.safetensors"))
        curves = artifacts.load_json(folder / "history.json")
        state.history[:], state.pending[:] = curves["rows"], curves["pending"]
        state.step = step
        log.info("going on from step %d of %s", step, folder)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.exists() else []


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
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if own:
                values[i] = own
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
