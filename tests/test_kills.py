"""The pipeline ends in the same bytes however often it is killed. `python -m tests.kills` does this at length."""

from __future__ import annotations

import pytest

from tests.kills import report

pytestmark = pytest.mark.slow


def test_a_killed_pipeline_ends_in_the_bytes_of_an_undisturbed_one():
    log = list(report({"repro": 5, "exp run --temp": 2}, 1, 10.0))
    assert sum("ended, all" in line for line in log) == 2
    assert any(" in stages." in line for line in log)  # somebody was at work when it happened
