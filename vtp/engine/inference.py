"""Trained networks at work: on a device, in its precision, compiled where asked, over batches of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from vtp.engine.parallel import compile_blocks

Network = TypeVar("Network", bound=nn.Module)


def put_to_work(network: Network, device: torch.device, *, compiled: bool) -> Network:
    """Move a frozen network to `device`, to be called under `autocast`.

    On a GPU the weights of its matrix products become bfloat16 here, once, and not at every call: `autocast` rounds them in the
    same way, so results stay what they were, and half of the reading is saved. Norms, tables and sums keep float32. Layers
    with a `packed` form for use take it, so the network can be neither trained nor saved any more. On a CPU nothing changes.

    Args:
        compiled: compile the transformer blocks for each shape they meet; then call them through `same_shape`.
    """
    network = network.to(device)
    if device.type == "cuda":
        for parent in list(network.modules()):
            for name, part in parent.named_children():
                if callable(packed := getattr(part, "packed", None)):
                    setattr(parent, name, packed())
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(torch.bfloat16)
    if compiled:
        compile_blocks(network)
    return network


def same_shape(function: Callable[..., Tensor], batch: int, *, compiled: bool) -> Callable[..., Tensor]:
    """`function` of tensors with up to `batch` rows, row by row independent, as one that only ever sees `batch` rows.

    What was compiled for one shape would be compiled anew for a last, smaller batch. The last row is repeated, and what comes of
    the repetitions is cut off. Without compilation nothing is gained, and `function` is given back.
    """
    if not compiled:
        return function

    def padded(*tensors: Tensor) -> Tensor:
        rows = len(tensors[0])
        if rows == batch:
            return function(*tensors)
        filled = [torch.cat([t, t[-1:].expand(batch - rows, *t.shape[1:])]) for t in tensors]
        return function(*filled)[:rows]

    return padded
