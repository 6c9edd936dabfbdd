"""Losses of 20 steps of every training, stored; `python -m tests.golden --update` stores new ones.

A change that is meant to be neutral leaves them where they are: bit for bit on the kind of machine that stored them, within 1e-4
of themselves on any other.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

from tests.tasks.conftest import KINDS, batch_of, build
from vtp.engine.checkpoint import Checkpoints
from vtp.engine.loop import fit
from vtp.engine.watch import Watch
from vtp.tracking import Track

CPUINFO = Path("/proc/cpuinfo")
FILE = Path(__file__).parent / "golden.json"
STEPS = 20
SECTIONS = {"pretrain": "pretrain", "decoder": "finetune_decoder", "dit": "dit", "metric": "evaluate.metric_network"}


def losses(kind: str) -> list[float]:
    """The loss of each step of a small training of this kind."""
    task = build(kind, f"{SECTIONS[kind]}.steps={STEPS}")
    with tempfile.TemporaryDirectory() as folder:
        end = fit(
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
            watch=Watch(torch.device("cpu"), task.batch, profile=None, folder=Path(folder)),
            replayed=False,
        )
    return [row["loss"] for row in end.history]


def _model_names() -> list[str]:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return [line.split(":")[1].strip() for line in lines if line.startswith("model name")]


def machine() -> dict[str, str | int]:
    """What the bits of a loss depend on beside the code."""
    names = _model_names()
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def differences(found: dict[str, list[float]], stored: dict[str, list[float]], tolerance: float) -> list[str]:
    """Where two sets of losses are more than `tolerance` apart, relative to the stored."""
    return [
        f"{kind} step {step}: {new:.9g}, stored {old:.9g}"
        for kind, olds in stored.items()
        for step, (new, old) in enumerate(zip(found[kind], olds, strict=True))
        if abs(new - old) > tolerance * max(abs(old), 1e-2)
    ]


def stored() -> tuple[dict[str, list[float]], float]:
    """The stored losses, and how far ours may be from them on this machine."""
    content = json.loads(FILE.read_text())
    return content["losses"], 0.0 if content["machine"] == machine() else 1e-4


def main() -> None:
    found = {kind: losses(kind) for kind in KINDS}
    if "--update" in sys.argv:
        FILE.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n")
        return
    expected, tolerance = stored()
    changed = differences(found, expected, tolerance)
    sys.exit("\n".join(changed) if changed else 0)


if __name__ == "__main__":
    main()
