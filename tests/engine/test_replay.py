"""A recorded step is the step: on a GPU, where there is one to record on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tasks.conftest import ALL, batch_of, build
from vtp.engine.checkpoint import Checkpoints, State
from vtp.engine.loop import fit, stepper, update
from vtp.engine.optim import optimizers
from vtp.engine.session import repeat_bits
from vtp.engine.watch import Watch
from vtp.seeding import Draws, HeldDraws
from vtp.tracking import Track

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


SECTIONS = {
    "pretrain": "pretrain",
    "variational": "pretrain",
    "aligned": "pretrain",
    "decoder": "finetune_decoder",
    "dit": "dit",
    "metric": "evaluate.metric_network",
}


def train(
    folder: Path, *, replayed: bool, kind: str = "pretrain", steps: int = 8, stop: int = 8, compiled: bool = False
) -> dict[str, torch.Tensor]:
    """Weights after `stop` steps of a training of `steps`."""
    task, device = build(kind, f"{SECTIONS[kind]}.steps={steps}"), torch.device("cuda")

    class Enough(Exception):
        pass

    def batches(start: int, end: int):
        for step in range(start, end):
            if step == stop:
                raise Enough
            yield batch_of(step)

    try:
        fit(
            task,
            batches,
            seed=0,
            device=device,
            checkpoints=Checkpoints(folder, 2),
            track=Track("test", folder),
            picture=lambda name, pictures, step: None,
            log_every=4,
            picture_every=steps,
            compiled=compiled,
            watch=Watch(device, task.batch, profile=None, folder=folder),
            replayed=replayed,
        )
    except Enough:
        pass
    return {name: tensor.cpu() for name, tensor in task.models.state_dict().items()}


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=2e-3, rtol=2e-2, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Sums in an order of their own: AdamW makes a whole step of a gradient's last bits where there is nothing but these."""
    before = torch.backends.cudnn.deterministic
    repeat_bits()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = before
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


@GPU
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("compiled", [False, True])
def test_replayed_steps_train_as_steps_that_are_launched(tmp_path, kind, compiled):
    launched = train(tmp_path / "a", replayed=False, kind=kind, compiled=compiled)
    close(launched, train(tmp_path / "b", replayed=True, kind=kind, compiled=compiled))


@GPU
def test_a_replayed_training_goes_on_from_its_checkpoint(tmp_path):
    whole = train(tmp_path / "whole", replayed=True)
    train(tmp_path / "cut", replayed=True, stop=5)
    close(whole, train(tmp_path / "cut", replayed=True))


@GPU
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("compiled", [False, True])
def test_deterministic_kernels_resume_in_the_same_bits(tmp_path, kind, compiled):
    whole = train(tmp_path / "whole", replayed=False, kind=kind, compiled=compiled)
    train(tmp_path / "cut", replayed=False, kind=kind, compiled=compiled, stop=5)
    again = train(tmp_path / "cut", replayed=False, kind=kind, compiled=compiled)
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name


@GPU
@pytest.mark.parametrize("kind", ALL)
def test_nothing_in_a_step_waits_for_the_gpu(kind):
    task, device = build(kind), torch.device("cuda")
    task.to(device)
    one = stepper(task, State(task.models, optimizers(task)), 0, device, replayed=False)
    batch = {name: value.to(device) for name, value in batch_of(0).items()}
    one(batch, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        one(batch, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_step_cannot_be_recorded_on_a_cpu():
    task = build("pretrain")
    with pytest.raises(ValueError, match=r"run\.replay=true needs one process with a GPU"):
        stepper(task, State(task.models, {}), 0, torch.device("cpu"), replayed=True)


class Closable(HeldDraws):
    """Held draws that can refuse to draw what nobody has asked for before."""

    closed = False

    def generator(self, purpose: str) -> torch.Generator:
        assert not self.closed, f"{purpose} is drawn inside of the step; a recorded step would draw the same for ever"
        return super().generator(purpose)


@pytest.mark.parametrize("kind", ALL)
def test_a_step_draws_nothing_but_what_can_be_filled_anew(kind):
    """What a recorded step rests on, shown where there is no GPU: after the first of its kind, all that it draws lies ready."""
    plain, held, known = build(kind), build(kind), set()
    states = [State(task.models.train(), optimizers(task)) for task in (plain, held)]
    draws = Closable(0)
    for step in range(5):
        draws.at(step)
        draws.closed = held.kind(step) in known
        for phase in plain.phases:
            expected = update(plain, phase, states[0], batch_of(step), Draws(0, step))
            found = update(held, held.phases[plain.phases.index(phase)], states[1], batch_of(step), draws)
            assert {name: float(value) for name, value in found.items()} == {n: float(v) for n, v in expected.items()}
        draws.closed = False
        known.add(held.kind(step))


def test_rates_follow_the_step_and_draws_come_from_it():
    task = build("pretrain", "pretrain.optimizer.warmup=4")
    state = State(task.models, optimizers(task))
    one = stepper(task, state, 0, torch.device("cpu"), replayed=False)
    one(batch_of(0), 0)
    first = state.optimizers["pretrain"].param_groups[0]["lr"]
    one(batch_of(1), 1)
    assert state.optimizers["pretrain"].param_groups[0]["lr"] == pytest.approx(2 * first)
    assert not torch.equal(Draws(0, 0).uniform("a", 4), Draws(0, 1).uniform("a", 4))
