"""The joint benchmark builds the work it names, and finds a form that computes something else."""

from __future__ import annotations

import pytest
import torch

from benchmarks import joint
from benchmarks.works import parameters

CPU = torch.device("cpu")


@pytest.mark.parametrize(("work", "batch", "width"), [("W1", 512, 768), ("W2", 1024, 384), ("16k", 16384, 768)])
def test_a_work_is_what_it_says(work, batch, width):
    params = parameters(work)
    assert (params.pretrain.batch, params.sizes.encoder.width) == (batch, width)
    assert params.pretrain.objective == "clip+ssl+ae"
    assert params.run.microbatch == (512 if work == "16k" else None)


def test_the_large_batch_is_the_first_work_many_times_over():
    large, small = parameters("16k"), parameters("W1")
    assert joint.scaled(large, 512).pretrain == small.pretrain
    assert large.sizes == small.sizes


def test_operations_grow_with_the_batch():
    params = parameters("W1", "tiny")
    assert joint.flop(joint.scaled(params, 16), 1, CPU) == pytest.approx(2 * joint.flop(params, 1, CPU), rel=0.05)


@pytest.mark.slow
def test_the_fast_form_is_the_plain_one_and_a_changed_one_is_not(monkeypatch):
    params = parameters("W1", "tiny")
    found = joint.errors(params, 1, CPU)
    assert found["loss_error"] < 1e-5
    assert found["gradient_error"] < 1e-4

    def bent(models: torch.nn.ModuleDict) -> None:
        with torch.no_grad():
            models["tokenizer"].encoder.blocks[0].mlp.w1.weight.mul_(1.01)

    monkeypatch.setattr(joint, "compile_blocks", bent)
    assert joint.errors(params, 1, CPU)["gradient_error"] > 1e-4
