"""Collectives as identities in a world of one.

Everything above this file is written for "the global batch"; whether it lives on one process or on many is decided here.
Rows of a global batch are dealt to ranks in contiguous slices: rank r of W holds rows [r*B/W, (r+1)*B/W).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor


class _Alone:
    on = False


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process is a world of one, whoever else there is: nothing is exchanged."""
    before, _Alone.on = _Alone.on, True
    try:
        yield
    finally:
        _Alone.on = before


def rank() -> int:
    """Index of this process, 0 in a world of one."""
    return td.get_rank() if td.is_initialized() and not _Alone.on else 0


def world() -> int:
    """Number of processes."""
    return td.get_world_size() if td.is_initialized() and not _Alone.on else 1


def local_rank() -> int:
    """Index of this process on its host, as `torchrun` gives it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """True on the one process that writes files and talks to trackers."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group that `torchrun` announced in the environment; nothing to do without one."""
    if "WORLD_SIZE" in os.environ and not td.is_initialized():
        td.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group, if there is one."""
    if td.is_initialized():
        _hosts.cache_clear()
        td.destroy_process_group()


def barrier() -> None:
    """Wait until every rank has come here."""
    if world() > 1:
        td.barrier()


def rows(total: int, name: str = "batch") -> slice:
    """This rank's rows of a global batch of `total`.

    Raises:
        ValueError: `total` does not divide over the ranks.
    """
    if total % world():
        raise ValueError(f"{name}={total} does not divide over {world()} ranks; use a multiple of {world()}.")
    share = total // world()
    return slice(rank() * share, (rank() + 1) * share)


def part(total: int) -> range:
    """This rank's share of `total` things that need no batch, as even as possible, in order."""
    return range(total * rank() // world(), total * (rank() + 1) // world())


def total(value: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    if world() == 1:
        return value
    value = value.detach().clone()
    td.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    return total(value) / world() if world() > 1 else value


def any_rank(here: bool) -> bool:
    """True if `here` is true on any rank; the ranks agree on it through a group of the hosts, which makes no device wait."""
    if world() == 1:
        return here
    flag = torch.tensor(int(here))
    td.all_reduce(flag, group=_hosts())
    return bool(flag)


@functools.cache
def _hosts() -> td.ProcessGroup:
    return td.new_group(backend="gloo")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(world())]
        td.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        td.all_reduce(grad)
        return grad.chunk(world())[rank()]


def gather(value: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the global batch: (b, ...) -> (W*b, ...), with gradient.

    The backward sums the gradients of all ranks. A loss that every rank takes over its own rows of the gathered tensor then
    gives W times the global gradient on each rank, which the averaging of parameter gradients divides by W again.
    """
    return value if world() == 1 else _Gather.apply(value)
