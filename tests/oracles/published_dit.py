"""The small LightningDiTs of the oracles, built from their tensors alone, for the tests that need one."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER
from vtp.models.dit import DiT
from vtp.models.lightningdit import infer_options

NAMES = sorted(folder.name for folder in FOLDER.glob("lightningdit_*"))


def settings(name: str) -> dict[str, Any]:
    """The arguments the reference was built with, and those of its guided passes."""
    return json.loads((FOLDER / name / "config.json").read_text())


def reference(name: str) -> tuple[DiT, dict[str, Tensor]]:
    """The model, and the stored inputs and outputs."""
    file = FOLDER / name / "model.safetensors"
    tensors = load_file(file)
    options = infer_options(tensors, file, settings(name)["cfg"]["num_heads"])
    return DiT.from_tensors(options, tensors, file), load_file(FOLDER / name / "io.safetensors")
