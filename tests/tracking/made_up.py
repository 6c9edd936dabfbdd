"""A run that tests track."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtp.tracking import Track

PARAMETERS = {"seed": 0, "dit": {"width": 64, "betas": [0.9, 0.95], "path": None}}


def begin(main: Path, key: str = "abc", stage: str = "pretrain", parameters: Any = PARAMETERS) -> Track:
    return Track.open(stage, key, main=main, variant="f" * 16, parameters=parameters, run_name="demo", tags={"host": "here"})
