"""The loop over every task: it learns, resumes bit for bit, and stops at what is not finite."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tasks.conftest import ALL, KINDS, batch_of, build
from vtp.artifacts import BrokenArtifact
from vtp.engine.checkpoint import Checkpoints, Prefix, State
from vtp.engine.loop import Batches, NotFinite, fit, means, settle, update
from vtp.engine.optim import optimizers
from vtp.engine.watch import Watch
from vtp.seeding import Draws
from vtp.tasks.base import Backward, Phase, Task
from vtp.tracking import Track


class Killed(Exception):
    """Stands for the machine being pulled away."""


def batches(start: int, stop: int, *, killed_at: int | None = None):
    for step in range(start, stop):
        if step == killed_at:
            raise Killed
        yield batch_of(step)


def run(
    task: Task,
    folder: Path,
    *,
    killed_at: int | None = None,
    made: Batches | None = None,
    log_every: int = 1,
    prefix: Prefix | None = None,
) -> list[dict[str, float]]:
    end = fit(
        task,
        made or (lambda start, stop: batches(start, stop, killed_at=killed_at)),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(folder, 2, prefix=prefix),
        track=Track("test", folder),
        picture=lambda name, pictures, step: None,
        log_every=log_every,
        picture_every=4,
        compiled=False,
        watch=Watch(torch.device("cpu"), task.batch, profile=None, folder=folder),
        replayed=False,
    )
    assert end.step == task.steps
    return end.history


@pytest.mark.trap
@pytest.mark.parametrize("kind", ALL)
def test_a_killed_run_ends_in_the_same_bits(kind, tmp_path):
    unbroken = build(kind)
    history = run(unbroken, tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(build(kind), tmp_path / "killed", killed_at=5)
    resumed = build(kind)
    assert run(resumed, tmp_path / "killed") == history
    for name, tensor in unbroken.models.state_dict().items():
        assert torch.equal(tensor, resumed.models.state_dict()[name]), name


@pytest.mark.parametrize("kind", ALL)
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


class Players(Task):
    """Two phases that see each other's weight, as a generator and its critic do."""

    def __init__(self) -> None:
        options = build("dit").phases[0].optimizer
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        models = nn.ModuleDict({"first": self.first, "second": self.second})
        phases = (Phase("first", (self.first,), options), Phase("second", (self.second,), options))
        super().__init__(models, phases, (), {"product": 1.0}, 1, 8)

    def passes(self, phase, batch, draws):
        yield Backward({"product": (self.first.weight * self.second.weight).sum()}, self.weights)


def test_a_phase_leaves_no_gradient_in_the_weights_of_another():
    task = Players()
    state = State(task.models, optimizers(task))
    for phase, other in (task.phases, task.phases[::-1]):
        found = update(task, phase, state, batch_of(0), Draws(0, 0))
        assert f"{phase.name}_gradient_norm" in found
        assert all(p.grad is None for module in (*phase.modules, *other.modules) for p in module.parameters())


def test_what_a_kill_left_of_a_checkpoint_is_cleared_away(tmp_path):
    left = tmp_path / ".step-00000002.7"
    left.mkdir()
    (left / "models.safetensors").write_bytes(b"half")
    run(build("dit"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


@pytest.mark.trap
def test_a_checkpoint_is_on_the_disk_before_it_counts(tmp_path, settled):
    prefix = Prefix(tmp_path / "shared", 4)
    run(build("dit"), tmp_path / "own", prefix=prefix)
    run(build("dit", "dit.steps=8"), tmp_path / "longer", prefix=Prefix(tmp_path / "shared", 6))
    named = {str(path.relative_to(tmp_path)) for path in settled if path.name.startswith("step-")}
    assert named >= {"own/step-00000006", "shared/step-00000004", "longer/step-00000004", "longer/step-00000008"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from Linux's /proc")
@pytest.mark.trap
def test_a_resumed_training_holds_no_checkpoint_open(tmp_path):
    """On a shared disk a file that is mapped cannot be deleted with its folder, and here its space would stay taken."""
    with pytest.raises(Killed):
        run(build("dit"), tmp_path, killed_at=5)

    def looked_at(start: int, stop: int):
        for step in range(start, stop):
            assert str(tmp_path) not in Path("/proc/self/maps").read_text()
            yield batch_of(step)

    run(build("dit"), tmp_path, made=looked_at)


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    run(build("dit"), tmp_path)
    for folder in tmp_path.glob("step-*"):
        (folder / "optimizers.safetensors").unlink()
    with pytest.raises(BrokenArtifact, match=r"optimizers\.safetensors is missing.* No other .* is whole; run\.fresh=true"):
        run(build("dit"), tmp_path)


def test_a_loss_that_is_not_finite_names_step_and_term(tmp_path):
    task = build("pretrain")
    with torch.no_grad():
        task.tokenizer.decoder.proj_out.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match="step 0: l1 is"):
        run(task, tmp_path)
    assert not list(tmp_path.glob("step-*"))


def test_shown_scalars_are_means_over_the_steps_that_have_them():
    recent = [(0, {"a": torch.tensor(1.0)}), (1, {"a": torch.tensor(3.0), "b": torch.tensor(5.0)}), (2, {})]
    assert means(settle(recent)) == {"a": 2.0, "b": 5.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("kind", ALL)
def test_a_signal_saves_between_two_steps_and_the_run_goes_on_to_the_same_bits(kind, number, tmp_path):
    unbroken = build(kind)
    history = run(unbroken, tmp_path / "unbroken", log_every=4)

    def signalled(start: int, stop: int):
        for step in range(start, stop):
            if step == 2:
                signal.raise_signal(number)  # comes while the batch of step 2 is made
            yield batch_of(step)

    with pytest.raises(SystemExit) as caught:
        run(build(kind), tmp_path / "stopped", made=signalled, log_every=4)
    assert caught.value.code == 75
    assert [path.name for path in sorted((tmp_path / "stopped").glob("step-*"))][-1] == "step-00000003"
    resumed = build(kind)
    assert run(resumed, tmp_path / "stopped", log_every=4) == history  # the row over steps 1 to 4 counts those before the signal
    for name, tensor in unbroken.models.state_dict().items():
        assert torch.equal(tensor, resumed.models.state_dict()[name]), name


@pytest.mark.trap
def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    run(build("pretrain"), tmp_path)
    with pytest.raises(BrokenArtifact, match=r"checkpoint of another model: \d+ tensors differ, the first is .* run\.fresh"):
        run(build("pretrain", "pretrain.ssl.prototypes=24"), tmp_path)


def test_a_training_that_is_past_the_end_is_not_called_its_end(tmp_path):
    run(build("dit"), tmp_path)
    with pytest.raises(ValueError, match=r"is at step 6, past the last step, 4: .* run\.fresh=true"):
        run(build("dit", "dit.steps=4"), tmp_path)


@pytest.mark.trap
def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path):
    task = build("dit")
    with pytest.raises(Killed):
        run(task, tmp_path, killed_at=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run(build("dit"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    unbroken, resumed = build("dit"), build("dit")
    assert run(resumed, tmp_path) == run(unbroken, tmp_path / "unbroken")


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
        watch=Watch(torch.device("cpu"), task.batch, profile=None, folder=tmp_path),
        replayed=False,
    ).history
    assert history[-1][key] < 0.9 * history[0][key]
