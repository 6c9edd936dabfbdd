"""Rows of numbers for every picture of a set, exactly once each, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vtp import dist


@torch.no_grad()
def extract(
    function: Callable[[Tensor], Tensor],
    picture: Callable[[int], Tensor],
    count: int,
    *,
    batch: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`function` of pictures 0 .. count - 1, in order, complete on every rank: (count, F) float32 on the CPU.

    Each rank takes a contiguous slice. Slices must be equally long to be gathered, so the last ones repeat the last picture; the
    repetitions are cut off again and enter no result.

    Args:
        function: pictures uint8 (b, 3, H, W) on `device` -> (b, F), row by row independent.
        picture: index -> uint8 (3, H, W), e.g. `Split.image` or `samples.__getitem__`.
        batch: pictures of one call on each rank.

    Raises:
        ValueError: there is no picture.
    """
    if count < 1:
        raise ValueError("no pictures to extract features from; count must be at least 1.")
    share = -(-count // dist.world())
    mine = [min(row, count - 1) for row in range(dist.rank() * share, (dist.rank() + 1) * share)]
    parts = []
    for start in range(0, share, batch):
        pictures = torch.stack([picture(row) for row in mine[start : start + batch]])
        parts.append(function(pictures.to(device)).float())
    return dist.gather(torch.cat(parts))[:count].cpu()
