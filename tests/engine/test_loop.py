"""The loop over every task: it learns, resumes bit for bit, and stops at what is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tasks.conftest import KINDS, batch_of, build
from vtp.artifacts import BrokenArtifact
from vtp.engine.checkpoint import Checkpoints
from vtp.engine.loop import NotFinite, fit, settle
from vtp.tasks.base import Task
from vtp.tracking import Track


class Killed(Exception):
    """Stands for the machine being pulled away."""


def batches(start: int, stop: int, *, killed_at: int | None = None):
    for step in range(start, stop):
        if step == killed_at:
            raise Killed
        yield batch_of(step)


def run(task: Task, folder: Path, *, killed_at: int | None = None) -> list[dict[str, float]]:
    return fit(
        task,
        lambda start, stop: batches(start, stop, killed_at=killed_at),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(folder, 2),
        track=Track("test", folder),
        picture=lambda name, pictures, step: None,
        log_every=1,
        picture_every=4,
        compiled=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_in_the_same_bits(kind, tmp_path):
    unbroken = build(kind)
    history = run(unbroken, tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(build(kind), tmp_path / "killed", killed_at=5)
    resumed = build(kind)
    assert run(resumed, tmp_path / "killed") == history
    for name, tensor in unbroken.models.state_dict().items():
        assert torch.equal(tensor, resumed.models.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_part_moves_and_nothing_else(kind, tmp_path):
    task, before = build(kind), build(kind)
    run(task, tmp_path)
    for phase, old in zip(task.phases, before.phases, strict=True):
        for module, start in zip(phase.modules, old.modules, strict=True):
            for (name, new), first in zip(module.named_parameters(), start.parameters(), strict=True):
                zero_grad = name.endswith(("mask_token", "registers")) or not first.requires_grad
                assert zero_grad or not torch.equal(new, first), f"{phase.name}: {name} did not move"


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    run(build("dit"), tmp_path)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    (newest / "models.safetensors").write_bytes(b"cut")
    task = build("dit")
    assert run(task, tmp_path)[-1]["step"] == 6


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    run(build("dit"), tmp_path)
    for folder in tmp_path.glob("step-*"):
        (folder / "optimizers.safetensors").unlink()
    with pytest.raises(BrokenArtifact, match=r"optimizers\.safetensors is missing"):
        run(build("dit"), tmp_path)


def test_a_loss_that_is_not_finite_names_step_and_term(tmp_path):
    task = build("pretrain")
    with torch.no_grad():
        task.tokenizer.decoder.proj_out.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match="step 0: l1 is"):
        run(task, tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_settled_scalars_are_means_over_the_steps_that_have_them():
    pending = [(0, {"a": torch.tensor(1.0)}), (1, {"a": torch.tensor(3.0), "b": torch.tensor(5.0)})]
    assert settle(pending) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind, tmp_path):
    section = {"pretrain": "pretrain", "decoder": "finetune_decoder", "dit": "dit", "metric": "evaluate.metric_network"}[kind]
    steps = 300 if kind == "dit" else 60  # its gates start at zero
    task = build(kind, f"{section}.steps={steps}", f"{section}.optimizer.rate=3e-3")
    key = {"pretrain": "l1", "decoder": "l1", "dit": "velocity", "metric": "cross_entropy"}[kind]
    fixed = batch_of(0)
    history = fit(
        task,
        lambda start, stop: (fixed for _ in range(start, stop)),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(tmp_path, steps),
        track=Track("test", tmp_path),
        picture=lambda name, pictures, step: None,
        log_every=10,
        picture_every=steps,
        compiled=False,
    )
    assert history[-1][key] < 0.9 * history[0][key]
