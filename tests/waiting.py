"""How tests wait: for a condition, and never for a time that a busy machine may miss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 600.0
"""Seconds after which what has not come will not come. Only a failure takes as long."""


def wait_for(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Look every `pause` seconds whether a condition holds, until it does.

    Raises:
        AssertionError: it did not within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain"
        time.sleep(pause)


def delayed(process: int) -> float:
    """Seconds that the main thread of a process was ready to work and got no processor, as far as the system tells."""
    told = Path(f"/proc/{process}/schedstat")
    return int(told.read_text().split()[1]) / 1e9 if told.exists() else 0.0
