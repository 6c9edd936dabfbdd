"""Tracking is on, into folders of the tests alone."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _tracking_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTP_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No uploader is started; the list holds the checkouts that asked for one."""
    asked: list[Path] = []

    class Idle:
        def poll(self) -> None:
            return None

    monkeypatch.setattr("vtp.tracking.track._start_uploader", lambda main: asked.append(main) or Idle())
    return asked
