"""Draws are functions of (seed, purpose, step), made for the global batch."""

from __future__ import annotations

import pytest
import torch

from vtp import dist, seeding
from vtp.seeding import Draws, HeldDraws


def test_each_key_has_numbers_of_its_own_and_keeps_them():
    draw = Draws(0, 5)
    assert torch.equal(draw.normal("a", 8, 3), draw.normal("a", 8, 3))
    assert not torch.equal(draw.normal("a", 8, 3), draw.normal("b", 8, 3))
    assert not torch.equal(draw.normal("a", 8, 3), Draws(0, 6).normal("a", 8, 3))
    assert not torch.equal(draw.normal("a", 8, 3), Draws(1, 5).normal("a", 8, 3))


def test_ranks_hold_slices_of_what_one_process_draws(monkeypatch):
    whole = Draws(0, 1)
    normal, subset = whole.normal("x", 8, 2), whole.subset("s", 16, 4)
    parts, rows = [], []
    monkeypatch.setattr(dist, "world", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        parts.append(Draws(0, 1).normal("x", 8, 2))
        rows.append(Draws(0, 1).subset("s", 16, 4) + 8 * rank)
    assert torch.equal(torch.cat(parts), normal)
    assert torch.equal(torch.cat(rows), subset)


def test_a_subset_takes_one_of_each_run_of_neighbours():
    rows = Draws(0, 0).subset("s", 64, 16)
    assert torch.equal(rows // 4, torch.arange(16))
    counts = torch.bincount(torch.cat([Draws(0, step).subset("s", 64, 16) % 4 for step in range(200)]))
    assert counts.min() > 600  # 800 expected


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match="subset of 5"):
        Draws(0, 0).subset("s", 16, 5)


def test_third_party_code_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeding.forked(0, "x"):
        first = torch.rand(3)
    with seeding.forked(0, "x"):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_held_draws_are_the_draws_of_every_step_in_the_same_tensors():
    held = HeldDraws(3)

    def everything(draws: Draws) -> list[torch.Tensor]:
        return [
            draws.uniform("a", 8, 2),
            draws.normal("a", 8, 2),
            draws.order("o", 8),
            draws.common("c", 2),
            draws.subset("s", 8, 4),
            draws.scheduled("t", lambda step: 0.1 * step),
        ]

    first = {}
    for step in (0, 1, 7):
        held.at(step)
        for i, (ours, theirs) in enumerate(zip(everything(held), everything(Draws(3, step)), strict=True)):
            assert torch.equal(ours, theirs)
            first.setdefault(i, ours.data_ptr())
            assert i in (2, 4) or ours.data_ptr() == first[i]  # those two are made of held ones


def test_an_order_holds_every_place_once():
    assert Draws(0, 0).order("o", 100).sort().values.equal(torch.arange(100))
