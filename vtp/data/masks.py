"""Block masks for masked-patch prediction, drawn for all crops of a batch at once.

Blocks are BEiT's (Bao et al. 2021, arXiv 2106.08254), the share hidden in each crop is iBOT's as DINOv2 spreads it over the batch
(arXiv 2304.07193): rectangles of random area and shape are laid over the grid until the wanted number of patches is hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vtp import dist
from vtp.seeding import Draws

TRIES = 10
"""Rectangles proposed for each block; the first that fits is laid."""

ROUNDS = 12
"""Blocks laid at most. Each takes about half of what is left, so that hardly any crop needs as many."""

ASPECT = 0.3
"""Flattest and, inverted, steepest block: height over width."""


@dataclass(frozen=True)
class Masks:
    """Hidden patches of `rows` crops with N patches each, as a mask and as a list of fixed length.

    `indices`, `weights` and `valid` have the same length on every rank and at every step: entries past the last hidden patch
    point at patch 0, weigh 0 and are not valid.
    """

    mask: Tensor
    """(rows, N) bool, True = hidden."""
    indices: Tensor
    """(upper,) int64: places of hidden patches in the flattened (rows * N), ascending."""
    weights: Tensor
    """(upper,) float: 1 / (patches hidden in the same crop), so that every masked crop counts as one."""
    valid: Tensor
    """(upper,) bool."""
    most: tuple[int, ...]
    """Patches that each masked crop of the global batch hides at most, descending; `listed` takes it with some of the rows."""


def block_masks(
    draws: Draws, total: int, grid: tuple[int, int], probability: float, ratio: tuple[float, float], *, views: int = 2
) -> Masks:
    """Masks for this rank's crops, of `total` crops in the global batch.

    int(total * probability) crops are masked, picked at random. Their shares of hidden patches are spread evenly over `ratio`:
    one is uniform in each of equally many sub-intervals, so that the number of hidden patches hardly varies between steps.

    Args:
        total: crops in the global batch, `views` of each picture.
        grid: patches (high, wide) of a crop.
        probability: share of the crops that are masked.
        ratio: least and largest share of patches hidden in a masked crop.
        views: crops of each picture. Rows are view-major like `global_crops`: the first crops of this rank's pictures, then
            their second crops, so that a crop's mask does not depend on the number of ranks.

    Raises:
        ValueError: `total` does not divide by `views`, or the pictures do not divide over the ranks.
    """
    if total % views:
        raise ValueError(f"total={total} crops do not divide by views={views}; use a multiple.")
    patches = grid[0] * grid[1]
    masked = int(total * probability)
    low, high = ratio

    # Where each crop stands in a random order of all; the first `masked` places are masked, with ever higher ratios.
    pictures = total // views
    place = draws.order("masks/order", total).view(views, pictures)[:, dist.rows(pictures, "masks")].flatten().double()
    within = draws.uniform("masks/ratio", pictures, views).T.flatten()
    share = low + (high - low) * (place + within) / max(masked, 1)
    targets = torch.where(place < masked, (patches * share).floor(), 0).float()
    mask = _blocks(draws, pictures, views, grid, targets).flatten(1)

    most = tuple(int(patches * (low + (high - low) * (i + 1) / masked)) for i in reversed(range(masked)))
    return listed(mask, most)


def listed(mask: Tensor, most: tuple[int, ...]) -> Masks:
    """The list of the True places of mask (rows, N), for any `rows` of the crops that `most` was made for.

    Its length is the most that so many crops can hide together: the sum of the first `rows` of `most`, since a rank or a
    micro-batch may, if unlikely, hold all the crops with the highest ratios. For a whole batch it is DINOv2's bound. Nothing
    waits for the device to count.
    """
    upper = sum(most[: len(mask)])
    hidden = mask.sum(1)
    valid = torch.arange(upper, device=mask.device) < hidden.sum()
    indices = torch.where(valid, torch.argsort((~mask).flatten(), stable=True)[:upper], 0)
    weights = torch.where(valid, 1 / hidden.clamp(min=1)[indices // mask.shape[1]], 0.0)
    return Masks(mask, indices, weights, valid, most)


def _blocks(draws: Draws, pictures: int, views: int, grid: tuple[int, int], targets: Tensor) -> Tensor:
    """Lay blocks over the grid, never more patches than targets (rows): (rows, h, w) bool.

    A block is at most half of the grid in area, shorter than the grid in both directions, and hides something new. It has four
    patches or more, or one in sixteen of a grid that is smaller than 8 x 8. Differs from BEiT's loop in that a crop gets a fixed
    number of rounds, and that a round without a fitting rectangle is not the crop's last.
    """
    u = draws.uniform("masks/blocks", pictures, views, ROUNDS, 4, TRIES).transpose(0, 1).flatten(0, 1).permute(1, 2, 0, 3)
    free = torch.ones(len(targets), *grid, device=targets.device)
    aspects = torch.exp(math.log(ASPECT) * (1 - 2 * u[:, 1]))
    h, w = grid
    lengths = h + (w - h) * torch.arange(2, device=free.device).view(2, 1, 1)
    place = torch.arange(max(h, w), device=free.device)
    for drawn, aspect in zip(u, aspects, strict=True):
        free = _with_block(free, targets, drawn, aspect, lengths, place)
    return free == 0


def _with_block(free: Tensor, targets: Tensor, u: Tensor, aspect: Tensor, lengths: Tensor, place: Tensor) -> Tensor:
    """Lay the first of some proposed blocks that fits: (rows, h, w), 1 where a patch is free, from draws (4, rows, TRIES).

    Height and width go through everything together: on a GPU a step waits for the launches of this, and not for its work. Never
    compiled: other roundings would lay other blocks.

    Args:
        aspect: height over width of the proposals, (rows, TRIES), from draws 1.
        lengths: h and w, (2, 1, 1).
        place: 0, 1, ... along the longer of the two.
    """
    h, w = free.shape[1:]
    least, most = max(1, min(4, h * w // 16)), max(1, h * w // 2)
    left = targets - (h * w - free.sum((1, 2)))
    areas = least + (left[:, None].clamp(max=most) - least) * u[0]
    sides = torch.stack([areas * aspect, areas / aspect]).clamp_(min=0).sqrt_().round_()  # (2, rows, TRIES)
    starts = (u[2:] * (lengths - sides + 1)).floor_()
    within = ((place >= starts[..., None]) & (place < (starts + sides)[..., None])).float()  # (2, rows, TRIES, longer side)
    rows, columns = within[0, ..., :h], within[1, ..., :w]
    new = (torch.bmm(rows, free) * columns).sum(2)  # sums of a few hundred ones: exact
    fits = (sides < lengths.clamp(min=2)).all(0) & (new > 0) & (new <= left[:, None])
    # argmax gives the first of equals; where none fits, an empty rectangle is laid
    first = fits.int().argmax(1)[None, :, None, None]
    row, column = within.gather(2, first.expand(2, -1, 1, within.shape[3]))
    return free * (1 - row[..., :h].transpose(1, 2) * column[..., :w] * fits.any(1)[:, None, None])
