"""Rounding flips nearest neighbours and with them KoLeo's gradient; held neighbours leave the rounding alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.measure import relative_error
from benchmarks.neighbours import Neighbours
from vtp.objectives import distillation
from vtp.objectives.distillation import koleo_loss
from vtp.seeding import generator


def features() -> Tensor:
    """256 features as a random encoder makes them: a common direction, and little of their own."""
    draw = generator(0, "features")
    return torch.randn(384, generator=draw) + 0.3 * torch.randn(256, 384, generator=draw)


def gradient(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(koleo_loss(x), x)[0]


def test_rounding_alone_flips_neighbours_and_held_ones_leave_the_rounding():
    plain, rounded = features(), features().bfloat16().float()
    neighbours = Neighbours()
    with neighbours.noted():
        expected = gradient(plain)
    with neighbours.held():
        held = gradient(rounded)
    figures = neighbours.figures()
    assert 0 < figures["neighbours_changed"] < 0.1
    assert 0 < figures["neighbour_error"] < 1e-3
    assert relative_error([held], [expected]) < 2e-2
    assert relative_error([gradient(rounded)], [expected]) > 5 * relative_error([held], [expected])


def test_the_choice_is_given_back_and_is_its_own_again():
    before, neighbours = distillation.nearest, Neighbours()
    with neighbours.noted():
        expected = gradient(features())
    with neighbours.held():
        assert torch.equal(gradient(features()), expected)
    assert distillation.nearest is before
    assert neighbours.figures() == {"neighbours_changed": 0.0, "neighbour_error": 0.0}


def test_a_form_that_chooses_wrong_neighbours_is_found(monkeypatch):
    neighbours = Neighbours()
    with neighbours.noted():
        koleo_loss(features())
    monkeypatch.setattr(distillation, "nearest", lambda x, everyone: (x @ everyone.T).argmin(1))
    with neighbours.held():
        koleo_loss(features())
    assert neighbours.figures()["neighbour_error"] > 2e-2


def test_another_number_of_losses_is_named():
    neighbours = Neighbours()
    with neighbours.noted():
        koleo_loss(features())
    with pytest.raises(ValueError, match="asked for 0 times, and 1 times were noted"), neighbours.held():
        pass
    with neighbours.held():
        koleo_loss(features())
        with pytest.raises(ValueError, match="more than the 1 times"):
            koleo_loss(features())
