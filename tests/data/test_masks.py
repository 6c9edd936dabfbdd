"""Block masks: counts on small grids, the list against a naive one, ranks against a world of one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtp import dist
from vtp.data.masks import Masks, block_masks, listed
from vtp.seeding import Draws

RATIO = (0.1, 0.5)


@pytest.mark.parametrize(
    "grid", [(2, 2), (3, 3), (4, 4), (6, 6), (2, 4), (7, 7), (8, 8), (1, 6)], ids=lambda grid: f"{grid[0]}x{grid[1]}"
)
def test_small_grids_get_their_masks(grid: tuple[int, int]) -> None:
    patches, total = grid[0] * grid[1], 400
    made = block_masks(Draws(0, 0), total, grid, 1.0, RATIO)
    wanted = sum(patches * (0.1 + 0.4 * (i + 0.5) / total) // 1 for i in range(total))
    assert 0.95 * wanted < made.mask.sum() < 1.05 * wanted
    assert made.mask.float().mean(0).min() > 0.02  # every patch has its turn


@pytest.mark.parametrize("side", [14, 16])
def test_ratios_vary_between_steps(side: int) -> None:
    sums = {int(block_masks(Draws(0, step), 16, (side, side), 0.5, RATIO).mask.sum()) for step in range(20)}
    assert len(sums) > 1


def test_every_crop_is_masked_as_often_as_any_other() -> None:
    masked = torch.stack([block_masks(Draws(0, step), 16, (4, 4), 0.25, RATIO).mask.any(1) for step in range(120)])
    assert (masked.float().mean(0) - 0.25).abs().max() < 0.15


def naive(mask: Tensor) -> tuple[list[int], list[float]]:
    indices, weights = [], []
    for i, row in enumerate(mask):
        for j, hidden in enumerate(row):
            if hidden:
                indices.append(i * len(row) + j)
                weights.append(1 / int(row.sum()))
    return indices, weights


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_list_holds_the_hidden_patches_then_padding(probability: float) -> None:
    made = block_masks(Draws(0, 0), 12, (6, 6), probability, RATIO)
    indices, weights = naive(made.mask)
    count = len(indices)
    assert made.indices.dtype == torch.int64
    assert made.mask.dtype == torch.bool
    assert made.indices.tolist() == indices + [0] * (len(made.indices) - count)
    torch.testing.assert_close(made.weights, torch.tensor(weights + [0.0] * (len(made.indices) - count)))
    assert made.valid.tolist() == [True] * count + [False] * (len(made.indices) - count)
    assert made.weights.sum().round() == int(12 * probability)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_get_the_masks_of_a_world_of_one(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    def made() -> Masks:
        return block_masks(Draws(1, 2), 16, (8, 8), 0.5, RATIO)

    whole = made()
    monkeypatch.setattr(dist, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        shares.append(made())
    joined = torch.cat([share.mask.unflatten(0, (2, -1)) for share in shares], 1).flatten(0, 1)
    assert torch.equal(joined, whole.mask)
    assert len({len(share.indices) for share in shares}) == 1
    assert all(share.valid.sum() == share.mask.sum() for share in shares)
    torch.testing.assert_close(sum(share.weights.sum() for share in shares), whole.weights.sum())


def test_list_is_long_enough_for_any_share_of_the_rows() -> None:
    """Even for the crops with the most hidden patches, which one rank or micro-batch may happen to hold."""
    for step in range(10):
        made = block_masks(Draws(0, step), 16, (8, 8), 0.5, RATIO)
        assert made.most == (32, 28, 25, 22, 19, 16, 12, 9)
        worst = made.mask[made.mask.sum(1).argsort(descending=True)]
        for rows in (1, 2, 4, 8, 16):
            part = listed(worst[:rows], made.most)
            assert len(part.indices) == sum(made.most[:rows])
            assert part.indices[part.valid].tolist() == naive(worst[:rows])[0]


def test_crops_must_divide_by_views() -> None:
    with pytest.raises(ValueError, match="total=7 crops do not divide by views=2"):
        block_masks(Draws(0, 0), 7, (4, 4), 0.5, RATIO)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_never_waits() -> None:
    draws = Draws(0, 0, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = block_masks(draws, 64, (16, 16), 0.5, RATIO)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    indices, _ = naive(made.mask.cpu())
    assert made.indices[made.valid].tolist() == indices
    assert made.mask.any(1).sum() == 32


def test_every_masked_crop_counts_as_one_however_little_it_hides() -> None:
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, 5], mask[2, 3:7] = True, True
    found = listed(mask, (8, 4, 2))
    assert found.indices[found.valid].tolist() == [5, 35, 36, 37, 38]
    assert found.weights.tolist() == [1.0, 0.25, 0.25, 0.25, 0.25, *[0.0] * 9]
