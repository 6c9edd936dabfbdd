"""Progress, on a terminal and without one."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from vtp.tracking import Bar


def test_progress_without_a_terminal_is_lines_of_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("vtp.tracking.bar.time.monotonic", lambda: float(next(clock)))
    bar = Bar("pretrain", 12, 4, shown=True)
    for step in range(8):
        bar.advance(images=50, loss=1 / (step + 1))
    bar.close()
    assert [record.getMessage() for record in caplog.records] == [
        "pretrain step 7/12: loss 0.3333, 5 images/s",
        "pretrain step 10/12: loss 0.1667, 5 images/s",
        "pretrain step 12/12: loss 0.125, 5 images/s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar("pretrain", 3, 1, shown=True)
    bar.advance(8, 0.25)
    bar.advance(8)
    bar.close()
    assert "3/3" in terminal.getvalue()
    assert "loss 0.25" in terminal.getvalue()
