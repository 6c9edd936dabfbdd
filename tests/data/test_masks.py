"""Block masks: counts and shape against DINOv2's generator, the list against a naive one, ranks against a world of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vtp import dist
from vtp.data import masks
from vtp.data.masks import Masks, block_masks, listed
from vtp.seeding import Draws

ORACLE = Path(__file__).parents[1] / "oracles" / "masking" / "io.safetensors"
RATIO = (0.1, 0.5)


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    return load_file(ORACLE)


def blocks(targets: Tensor, grid: tuple[int, int]) -> Tensor:
    return masks._blocks(Draws(0, 0), len(targets), 1, grid, targets.float())


@pytest.mark.parametrize("side", [14, 16])
def test_counts_are_those_of_the_published_generator(oracle: dict[str, Tensor], side: int) -> None:
    targets, theirs = oracle[f"{side}x{side}.targets"], oracle[f"{side}x{side}.counts"]
    counts = blocks(targets, (side, side)).sum((1, 2))
    assert (counts <= targets).all()
    torch.testing.assert_close((counts / targets).mean(), (theirs / targets).mean(), atol=0.005, rtol=0)
    assert (counts / targets).min() > 0.85
    assert (counts == targets).float().mean() >= (theirs == targets).float().mean()


@pytest.mark.parametrize("side", [14, 16])
def test_masks_lie_where_the_published_ones_do(oracle: dict[str, Tensor], side: int) -> None:
    theirs = oracle[f"{side}x{side}.occupancy_30pct"].float()
    ours = blocks(torch.full((1500,), int(0.3 * side * side)), (side, side)).float().mean(0)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.97
    assert (ours - theirs).abs().mean() < 0.03


def test_masks_are_blocks(oracle: dict[str, Tensor]) -> None:
    """Neighbours of hidden patches are hidden as often as in the published masks, far more than the third that chance gives."""

    def together(mask: Tensor) -> float:
        mask = mask.float()
        pairs = (mask[:, 1:] * mask[:, :-1]).sum() + (mask[:, :, 1:] * mask[:, :, :-1]).sum()
        return float(pairs / (2 * mask.sum()))

    theirs = torch.stack([oracle[f"16x16.exact_masks.{i}"] for i in range(6)])
    ours = blocks(theirs.sum((1, 2)).repeat(50), (16, 16))
    assert abs(together(ours) - together(theirs)) < 0.08
    assert together(ours) > 0.6
    assert theirs.float().mean() < 0.35


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
def test_ratios_are_spread_over_the_batch(oracle: dict[str, Tensor], side: int) -> None:
    """As in the published collate function: 8 of 16 crops, one ratio from each of 8 sub-intervals, the same bound."""
    patches = side * side
    sums = []
    for step in range(20):
        made = block_masks(Draws(0, step), 16, (side, side), 0.5, RATIO)
        counts = made.mask.sum(1).sort(descending=True).values
        assert (counts[:8] > 0).all()
        assert (counts[8:] == 0).all()
        upper = torch.tensor([int(patches * (0.1 + 0.4 * (i + 1) / 8)) for i in reversed(range(8))])
        lower = torch.tensor([int(patches * (0.1 + 0.4 * i / 8)) for i in reversed(range(8))])
        assert (counts[:8] <= upper).all()
        assert (counts[:8] >= 0.85 * lower).all()
        sums.append(int(counts.sum()))
        assert len(made.indices) == oracle[f"{side}x{side}.collate.upperbound"]
    assert len(set(sums)) > 1


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
