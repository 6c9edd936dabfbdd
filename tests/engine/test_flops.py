"""The operations of a step, against counts by hand."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.engine.test_loop import Killed, batches, run
from tests.tasks.conftest import ALL, batch_of, build
from vtp import dist
from vtp.engine.checkpoint import Checkpoints, State
from vtp.engine.flops import counted
from vtp.engine.loop import fit, operations, stepper
from vtp.engine.optim import optimizers
from vtp.engine.watch import Watch
from vtp.seeding import Draws
from vtp.tracking import Track


def flops(work) -> int:
    state = State(nn.ModuleDict(), {})
    with counted(state):
        work()
    return state.flops


def test_a_linear_layer_costs_two_operations_a_weight_and_row_and_twice_that_backwards():
    x, w = torch.ones(7, 5, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    assert flops(lambda: x @ w) == 2 * 7 * 5 * 3
    assert flops(lambda: (x @ w).sum().backward()) == 3 * 2 * 7 * 5 * 3


def test_a_convolution_costs_two_operations_a_weight_and_place():
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    assert flops(lambda: F.conv2d(x, w, padding=1)) == 2 * 2 * 4 * 3 * 9 * 64


def test_attention_counts_on_a_cpu_as_well():
    q = torch.ones(2, 3, 16, 8, requires_grad=True)
    forward = 2 * (2 * 2 * 3 * 16 * 16 * 8)  # scores, and what they weigh
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == forward
    # Backwards the scores are computed anew, and each of the two products has two gradients.
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()) == forward + forward * 5 // 2


def test_a_resumed_run_knows_what_a_step_costs_without_counting_again(tmp_path, monkeypatch):
    from vtp.engine import loop

    with pytest.raises(Killed):
        run(build("dit"), tmp_path, killed_at=3)

    def again(*_):
        raise AssertionError("counted a second time")

    monkeypatch.setattr(loop, "counted", again)
    run(build("dit"), tmp_path)


def test_steps_of_another_kind_are_counted_anew(tmp_path):
    """A discriminator joins at step 1, and the decoder follows it from step 2 on."""
    found = []
    for steps in (1, 2, 3, 4):
        run(build("decoder", f"finetune_decoder.steps={steps}"), tmp_path / str(steps))
        task = build("decoder")
        state = State(task.models, optimizers(task))
        Checkpoints(tmp_path / str(steps), 2).restore(state)
        found.append(state.flops)
    assert found == [step_of("decoder", None, step=step) for step in range(4)]
    assert found[0] < found[1] < found[2] == found[3]


def step_of(kind: str, microbatch: int | None, device: str = "cpu", step: int = 0) -> int:
    """Operations of one step that is really taken."""
    task = build(kind, microbatch=microbatch)
    task.to(torch.device(device))
    state = State(task.models.train(), optimizers(task))
    batch = {name: rows.to(device) for name, rows in batch_of(0).items()}
    with counted(state):
        stepper(task, state, 0, torch.device(device), replayed=False)(batch, step)
    return state.flops


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("microbatch", [None, 4])
@pytest.mark.parametrize("step", [0, 2])
def test_shapes_alone_tell_the_operations_of_a_step_and_leave_the_task_as_it_is(kind, microbatch, step):
    task = build(kind, microbatch=microbatch)
    before = {name: tensor.clone() for name, tensor in task.models.state_dict().items()}
    trained = [p.requires_grad for p in task.models.parameters()]
    assert operations(task, batch_of(0), Draws(0, step)) == step_of(kind, microbatch, step=step)
    for name, tensor in task.models.state_dict().items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, before[name])
    assert [p.requires_grad for p in task.models.parameters()] == trained
    assert all(p.grad is None for p in task.models.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ALL)
def test_shapes_tell_the_operations_of_a_step_on_a_gpu(kind):
    task, batch = build(kind), {name: rows.cuda() for name, rows in batch_of(0).items()}
    task.to(torch.device("cuda"))
    assert operations(task, batch, Draws(0, 0, "cuda")) == step_of(kind, None, "cuda")


def test_the_step_of_all_ranks_is_told_from_the_rows_of_one(monkeypatch):
    expected = step_of("pretrain", None)
    monkeypatch.setattr(dist, "world", lambda: 1 if dist._Alone.on else 2)
    half = {name: rows[:4] for name, rows in batch_of(0).items()}
    assert operations(build("pretrain"), half, Draws(0, 0)) == expected


@pytest.mark.parametrize("kind", ["dit", "decoder"])
def test_a_compiled_training_tells_its_operations_before_its_first_step(kind, tmp_path, monkeypatch):
    from vtp.engine import loop

    monkeypatch.setattr(loop, "compile_blocks", lambda *models: None)
    monkeypatch.setattr(loop, "compiled_code", lambda on: contextlib.nullcontext())
    end = fit(
        build(kind, *(["finetune_decoder.steps=4"] if kind == "decoder" else [])),
        batches,
        seed=0,
        device=torch.device("cpu"),
        checkpoints=Checkpoints(tmp_path, 2),
        track=Track("test", tmp_path),
        picture=lambda name, pictures, step: None,
        log_every=1,
        picture_every=4,
        compiled=True,
        watch=Watch(torch.device("cpu"), 8, profile=None, folder=tmp_path),
        replayed=False,
    )
    assert end.flops == step_of(kind, None, step=3)
