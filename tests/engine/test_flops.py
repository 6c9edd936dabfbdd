"""The operations of a step, against counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.engine.test_loop import Killed, run
from tests.tasks.conftest import build
from vtp.engine.checkpoint import State
from vtp.engine.flops import counted


def flops(work) -> int:
    state = State(nn.ModuleDict(), {})
    with counted(state, compiled=False):
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
