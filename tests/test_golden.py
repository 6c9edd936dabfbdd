"""The stored losses hold, and would not hold for a changed training."""

from __future__ import annotations

import json

import pytest

from tests.golden import FILE, differences, losses
from tests.tasks.conftest import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_stored_ones(kind):
    assert not differences({kind: losses(kind)}, {kind: json.loads(FILE.read_text())[kind]})


def test_a_change_of_a_thousandth_is_seen():
    stored = json.loads(FILE.read_text())
    assert differences({kind: [1.001 * x for x in row] for kind, row in stored.items()}, stored)
