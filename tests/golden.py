"""Losses of 20 steps of every training, stored; `python -m tests.golden --update` stores new ones.

A change that is meant to be neutral leaves them where they are: within 1e-4 of themselves on any processor.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.tasks.conftest import KINDS, batch_of, build
from vtp.engine.checkpoint import Checkpoints
from vtp.engine.loop import fit
from vtp.tracking import Track

FILE = Path(__file__).parent / "golden.json"
STEPS = 20
SECTIONS = {"pretrain": "pretrain", "decoder": "finetune_decoder", "dit": "dit", "metric": "evaluate.metric_network"}


def losses(kind: str) -> list[float]:
    """The loss of each step of a small training of this kind."""
    task = build(kind, f"{SECTIONS[kind]}.steps={STEPS}")
    with tempfile.TemporaryDirectory() as folder:
        history = fit(
            task,
            lambda start, stop: map(batch_of, range(start, stop)),
            seed=0,
            device=torch.device("cpu"),
            checkpoints=Checkpoints(Path(folder), STEPS),
            track=Track("golden", Path(folder)),
            picture=lambda name, pictures, step: None,
            log_every=1,
            picture_every=STEPS,
            compiled=False,
        )
    return [row["loss"] for row in history]


def differences(found: dict[str, list[float]], stored: dict[str, list[float]]) -> list[str]:
    """Where two sets of losses are more than 1e-4 apart, relative to the stored."""
    return [
        f"{kind} step {step}: {new:.6g}, stored {old:.6g}"
        for kind, olds in stored.items()
        for step, (new, old) in enumerate(zip(found[kind], olds, strict=True))
        if abs(new - old) > 1e-4 * max(abs(old), 1e-2)
    ]


def main() -> None:
    found = {kind: losses(kind) for kind in KINDS}
    if "--update" in sys.argv:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        return
    changed = differences(found, json.loads(FILE.read_text()))
    sys.exit("\n".join(changed) if changed else 0)


if __name__ == "__main__":
    main()
