"""Functions marked for compilation run as written until somebody asks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from vtp.compiling import compilable, compiled, written


@compilable
def curve(x: Tensor, slope: Tensor) -> Tensor:
    """A docstring that stays."""
    return (slope * x).sin() + x.square()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_as_written_nothing_is_compiled():
    before = graphs()
    with compiled(False):
        curve(torch.ones(3), torch.tensor(2.0))
    assert graphs() == before
    assert curve.__doc__ == "A docstring that stays."


@pytest.mark.slow
def test_numbers_that_change_as_tensors_cost_one_compilation_and_a_shape_another():
    before = graphs()
    with compiled(True):
        for i in range(4):
            x = torch.arange(3.0)
            torch.testing.assert_close(curve(x, torch.tensor(float(i))), (i * x).sin() + x.square())
        assert graphs() == before + 1
        curve(torch.ones(5), torch.tensor(0.0))
        assert graphs() == before + 2
    curve(torch.ones(7), torch.tensor(0.0))
    assert graphs() == before + 2


@pytest.mark.slow
def test_what_is_to_run_as_written_compiles_nothing_where_all_else_is_compiled():
    block = torch.nn.Linear(2, 2)
    block.compile()
    before = graphs()
    with compiled(True), written():
        curve(torch.ones(9), torch.tensor(0.0))
        block(torch.ones(1, 2))
    assert graphs() == before


@compilable
def distance(x: Tensor) -> Tensor:
    return (x.sin() * x.cos()).square().sum()


@pytest.mark.slow
def test_compiled_code_can_be_run_backwards_twice():
    x = torch.arange(3.0, requires_grad=True)
    with compiled(True):
        y = x * 2
        first, second = distance(y), y.sum()
        one = torch.autograd.grad(first + second, x, retain_graph=True)[0]
        two = torch.autograd.grad(first, x)[0]
    torch.testing.assert_close(one - two, torch.full((3,), 2.0))
