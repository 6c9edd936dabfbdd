"""Counting the floating point operations of a training step, so that runs can be held against what they cost.

Matrix products, convolutions and attention count, forwards and backwards, two operations for a multiplication with its addition;
what is done element by element does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vtp import dist
from vtp.compiling import compiled
from vtp.engine.checkpoint import State
from vtp.tasks.base import Batch, Task


@contextlib.contextmanager
def counted(state: State) -> Iterator[None]:
    """Count what runs in the block as one step, over all ranks, into `state.flops`. Compiled code would hide what it does."""
    with _counter() as counter:
        yield
    state.flops = counter.get_total_flops() * dist.world()


@contextlib.contextmanager
def imagined(task: Task, batch: Batch) -> Iterator[tuple[Task, Batch, FlopCounterMode]]:
    """The task and the batch of all ranks as shapes without numbers or memory, to be run as written, and what counts it.

    What runs in the block computes nothing, exchanges nothing and leaves `task` as it is.

    Args:
        batch: this rank's rows.
    """
    ranks = dist.world()
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes, dist.alone(), compiled(False), _counter() as counter:
        with FakeCopyMode(shapes):
            copy = deepcopy(task)
        whole = {name: rows.new_empty(ranks * len(rows), *rows.shape[1:]) for name, rows in batch.items()}
        yield copy, whole, counter


def _counter() -> FlopCounterMode:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: _attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)
