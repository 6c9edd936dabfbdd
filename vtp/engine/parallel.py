"""What a world of many needs around an unchanged task: equal starts, averaged gradients, compiled blocks."""

from __future__ import annotations

import torch
import torch.distributed as td
from torch import Tensor, nn

from vtp import dist
from vtp.compiling import allow_shapes

BUCKET = 64 * 2**20


def same_start(models: nn.Module) -> None:
    """Give every rank the weights of rank 0."""
    if dist.world() > 1:
        for tensor in [*models.parameters(), *models.buffers()]:
            td.broadcast(tensor.data, 0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over ranks, in place, in a few large messages.

    After all backward passes of a phase, so that any number of them, cached re-forwards included, costs one exchange.
    """
    if dist.world() == 1:
        return
    for parameter in parameters:
        # A rank whose rows had no use for a parameter still takes part in the exchange.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for parameter in parameters:
        assert parameter.grad is not None
        bucket.append(parameter.grad)
        if sum(g.numel() * g.element_size() for g in bucket) >= BUCKET:
            _average(bucket)
            bucket = []
    if bucket:
        _average(bucket)


def _average(grads: list[Tensor]) -> None:
    flat = torch.cat([g.flatten() for g in grads])
    td.all_reduce(flat)
    flat /= dist.world()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def compile_blocks(*models: nn.Module) -> None:
    """Compile every transformer block in place for each shape it meets; parameter names stay as they are."""
    allow_shapes()  # one compiled block serves all blocks of its kind
    for module in nn.ModuleList(models).modules():  # each once, also what several of them hold
        for block in getattr(module, "blocks", ()):
            block.compile(dynamic=False)
