"""The stored losses hold, and would not hold for a changed training."""

from __future__ import annotations

import pytest

from tests.golden import differences, losses, stored
from tests.tasks.conftest import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_stored_ones(kind):
    expected, tolerance = stored()
    assert not differences({kind: losses(kind)}, {kind: expected[kind]}, tolerance)


def test_a_change_of_a_thousandth_is_seen():
    expected, _ = stored()
    assert differences({kind: [1.001 * x for x in row] for kind, row in expected.items()}, expected, 1e-4)
