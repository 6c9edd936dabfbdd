"""The pipeline ends in the same bytes however often it is killed. `python -m tests.kills` does this at length."""

from __future__ import annotations

import random

import pytest

from tests.kills import MODES, deal, report
from vtp.config import ROOT


def test_kills_are_dealt_over_all_stages():
    names = list("abcdefghij")
    hands = deal(names, dict.fromkeys(MODES, 5), random.Random(3))
    assert [len(hand) for hand in hands.values()] == [5] * 4
    assert all(hand == sorted(set(hand)) for hand in hands.values())
    assert sorted(name for hand in hands.values() for name in hand) == sorted(names * 2)


@pytest.mark.trap
def test_the_documents_tell_what_repairs_the_state_after_a_kill():
    told = (ROOT / "docs" / "resume.md").read_text()
    for command in (
        "git symbolic-ref HEAD refs/heads/main",
        "git checkout params.yaml",
        "git stash pop",
        "dvc queue kill TASK",
        "dvc queue remove --all",
        "rm -rf .dvc/tmp/exps/standalone/tmp*",
        "Do not commit while `dvc exp run` works",
    ):
        assert command in told


@pytest.mark.trap
@pytest.mark.slow
def test_a_killed_pipeline_ends_in_the_bytes_of_an_undisturbed_one():
    log = list(report({"exp run --temp": 4}, 1))
    assert sum("ended, all" in line for line in log) == 1
    assert any(": in " in line for line in log)  # somebody was at work when it happened
