"""DINOv2's block masks: the list of a stored batch exactly, the masks themselves by what they look like.

Ours are drawn for all crops at once from generators of their own, so single masks differ; their counts, places and clumps must
not.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.data import masks
from vtp.data.masks import block_masks, listed
from vtp.seeding import Draws

ORACLE = load_file(FOLDER / "masking" / "io.safetensors")
CONFIG = json.loads((FOLDER / "masking" / "config.json").read_text())
GRIDS = {f"{high}x{wide}": (high, wide) for high, wide, _ in CONFIG["oracle"]["grids"]}
CROPS = 2 * CONFIG["oracle"]["collate_batch"]
PROBABILITY, (LOW, HIGH) = CONFIG["collate"]["probability"], CONFIG["collate"]["ratio"]
EQUAL = Tolerance(0, 0)

each_grid = pytest.mark.parametrize("name", GRIDS)


def blocks(targets: Tensor, grid: tuple[int, int]) -> Tensor:
    return masks._blocks(Draws(0, 0), len(targets), 1, grid, targets.float())


def bounds(name: str) -> tuple[int, ...]:
    """Most patches of each masked crop, descending."""
    patches, masked = GRIDS[name][0] * GRIDS[name][1], int(CROPS * PROBABILITY)
    return tuple(int(patches * (LOW + (HIGH - LOW) * (i + 1) / masked)) for i in reversed(range(masked)))


def number(like: Tensor, value: int) -> Tensor:
    return torch.full_like(like, value)


@each_grid
def test_the_list_of_a_stored_batch(compare: Compare, name: str) -> None:
    def stored(key: str) -> Tensor:
        return ORACLE[f"{name}.collate.{key}"]

    made = listed(stored("masks"), bounds(name))
    hidden = int(made.valid.sum())
    compare("masking", f"{name}.collate.n_masked", number(stored("n_masked"), hidden), stored("n_masked"), EQUAL)
    compare("masking", f"{name}.collate.upperbound", number(stored("upperbound"), len(made.indices)), stored("upperbound"), EQUAL)
    compare("masking", f"{name}.collate.mask_indices", made.indices[:hidden], stored("mask_indices"), EQUAL)
    compare("masking", f"{name}.collate.masks_weight", made.weights[:hidden], stored("masks_weight"))
    assert made.weights[hidden:].count_nonzero() == 0


@each_grid
def test_a_batch_of_ours_is_as_the_stored_one(name: str) -> None:
    """As many masked crops, one ratio from each of as many sub-intervals, the same bound."""
    theirs, most = ORACLE[f"{name}.collate.masks"], bounds(name)
    patches, masked = theirs.shape[1], len(most)
    least = torch.tensor([int(patches * (LOW + (HIGH - LOW) * i / masked)) for i in reversed(range(masked))])
    for step in range(20):
        made = block_masks(Draws(0, step), CROPS, GRIDS[name], PROBABILITY, (LOW, HIGH))
        for mask in (made.mask, theirs):
            counts = mask.sum(1).sort(descending=True).values
            assert counts[:masked].min() > 0 == counts[masked:].sum()
            assert (counts[:masked] <= torch.tensor(most)).all()
            assert (counts[:masked] >= 0.85 * least).all()
        assert made.most == most
        assert len(made.indices) == ORACLE[f"{name}.collate.upperbound"]


@each_grid
def test_counts(compare: Compare, name: str) -> None:
    targets, theirs = ORACLE[f"{name}.targets"], ORACLE[f"{name}.counts"]
    counts = blocks(targets, GRIDS[name]).sum((1, 2))
    assert (counts <= targets).all()
    # Single counts fall short of their target by chance, ours and theirs of different ones.
    shortest = 1 - CONFIG["stats"][name]["ratio_min"] + 0.1
    worst = Tolerance(shortest * targets.max().item(), 0.01 * targets.float().mean().item())
    compare("masking", f"{name}.counts", counts.to(theirs.dtype), theirs, worst)
    ours, exact = counts / targets, counts == targets
    assert abs(ours.mean().item() - CONFIG["stats"][name]["ratio_mean"]) < 0.005
    assert exact.float().mean() >= CONFIG["stats"][name]["exact_fraction"] - 0.01


@each_grid
def test_places(compare: Compare, name: str) -> None:
    """The centre is hidden far more often than the corners."""
    theirs, (high, wide) = ORACLE[f"{name}.occupancy_30pct"], GRIDS[name]
    ours = blocks(torch.full((1500,), int(0.3 * high * wide)), (high, wide)).float().mean(0)
    # Theirs are shares of 400 masks, so up to 0.025 off by chance in one deviation.
    compare("masking", f"{name}.occupancy_30pct", ours, theirs.float(), Tolerance(0.125, 0.03))
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.float().flatten()]))[0, 1] > 0.97


@each_grid
def test_clumps(name: str) -> None:
    """Neighbours of hidden patches are hidden as often as in the published masks, far more than by chance."""

    def together(mask: Tensor) -> float:
        mask = mask.float()
        pairs = (mask[:, 1:] * mask[:, :-1]).sum() + (mask[:, :, 1:] * mask[:, :, :-1]).sum()
        return float(pairs / (2 * mask.sum()))

    theirs = torch.stack([ORACLE[f"{name}.exact_masks.{i}"] for i in range(CONFIG["oracle"]["n_exact"])])
    ours = blocks(theirs.sum((1, 2)).repeat(50), GRIDS[name])
    assert abs(together(ours) - together(theirs)) < 0.1
    assert together(ours) > theirs.float().mean() + 0.2


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"targets", "collate.masks"} | {f"exact_masks.{i}" for i in range(CONFIG["oracle"]["n_exact"])}
    compared = {"counts", "occupancy_30pct", *(f"collate.{key}" for key in ("mask_indices", "masks_weight", "n_masked"))}
    assert set(ORACLE) == {f"{name}.{key}" for name in GRIDS for key in inputs | compared | {"collate.upperbound"}}
