"""Counting the floating point operations of a training step, so that runs can be held against what they cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vtp import dist
from vtp.engine.checkpoint import State


@contextlib.contextmanager
def counted(state: State, compiled: bool) -> Iterator[None]:
    """Count what runs in the block as one step, over all ranks, into `state.flops`.

    Matrix products, convolutions and attention count, forwards and backwards, two operations for a multiplication with its
    addition; what is done element by element does not. Compiled blocks hide what they do, so the block runs without them.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {attention: _attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward}
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with eager, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield
    state.flops = counter.get_total_flops() * dist.world()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)
