"""Rows of numbers for every picture of a set, exactly once each, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vtp import dist


@torch.no_grad()
def extract(
    function: Callable[[Tensor], Tensor],
    item: Callable[[int], Tensor],
    count: int,
    *,
    batch: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`function` of items 0 .. count - 1, in order, complete on every rank: (count, F) float32 on the CPU.

    Each rank takes a contiguous slice. Slices must be equally long to be gathered, so the last ones repeat the last item; the
    repetitions are cut off again and enter no result.

    Args:
        function: items (b, ...) on `device` -> (b, F), row by row independent.
        item: index -> a picture, uint8 (3, H, W), e.g. `Split.image`; or a latent, e.g. `latents.__getitem__`.
        batch: items of one call on each rank.

    Raises:
        ValueError: there is nothing.
    """
    if count < 1:
        raise ValueError("nothing to extract features from; count must be at least 1.")
    share = -(-count // dist.world())
    mine = [min(row, count - 1) for row in range(dist.rank() * share, (dist.rank() + 1) * share)]
    parts = []
    for start in range(0, share, batch):
        items = torch.stack([item(row) for row in mine[start : start + batch]])
        parts.append(function(items.to(device)).float())
    return dist.gather(torch.cat(parts))[:count].cpu()
