"""Comparison with stored tensors, each counted: the summary at the end says how many of which folder were compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
KEY = "compared with the oracle"


@dataclass(frozen=True)
class Tolerance:
    """Largest and mean absolute difference that still count as equal."""

    largest: float
    mean: float


FLOAT32 = Tolerance(2e-5, 2e-5)
BFLOAT16_ROPE = Tolerance(2e-3, 5e-5)
"""A last-bit difference in float32 flips single roundings to bfloat16."""

ANOTHER_CPU = Tolerance(4e-3, 2e-4)
"""Where the first convolution differs in its last bits already, as AVX2's, many roundings flip: measured 2.4e-3 and 1.5e-4."""

Compare = Callable[..., None]


@cache
def bfloat16_rope() -> Tolerance:
    """What a tensor behind RoPE in bfloat16 may differ by on this machine: as stated, if it embeds patches in the stored bits."""
    from vtp import VisualTokenizer

    stored = load_file(FOLDER / "vtp_a" / "io.safetensors")
    model = VisualTokenizer.from_pretrained(FOLDER / "vtp_a")
    sizes = [name.removesuffix(".image") for name in stored if name.endswith(".image")]
    same = (stored[f"{s}.debug.tokens_in"].equal(model.encoder.embed(stored[f"{s}.image"])[0]) for s in sizes)
    return BFLOAT16_ROPE if all(same) else ANOTHER_CPU


@pytest.fixture
def compare(record_property: Callable[[str, object], None]) -> Compare:
    """`compare(folder, name, ours, theirs, tolerance)`: equal shape and dtype, values within the tolerance."""

    def one(folder: str, name: str, ours: Tensor, theirs: Tensor, tolerance: Tolerance = FLOAT32) -> None:
        where = f"{folder}/{name}"
        assert ours.shape == theirs.shape, f"{where}: {tuple(ours.shape)}, stored {tuple(theirs.shape)}"
        assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype}, stored {theirs.dtype}"
        difference = (ours.detach().double() - theirs.double()).abs()
        largest, mean = (difference.max().item(), difference.mean().item()) if difference.numel() else (0.0, 0.0)
        # `not >` would let a NaN through.
        assert largest <= tolerance.largest, f"{where}: largest difference {largest:.2e}, allowed {tolerance.largest:.0e}"
        assert mean <= tolerance.mean, f"{where}: mean difference {mean:.2e}, allowed {tolerance.mean:.0e}"
        record_property(KEY, where)

    return one


def names(folder: str) -> list[str]:
    """All names in a folder's io.safetensors, sorted."""
    with safe_open(FOLDER / folder / "io.safetensors", "pt") as file:
        return sorted(file.keys())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of compared tensors, by folder."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    compared = {value for report in reports for key, value in getattr(report, "user_properties", ()) if key == KEY}
    if not compared:
        return
    counts = Counter(where.split("/")[0] for where in compared)
    terminalreporter.section(f"{len(compared)} tensors compared with {len(counts)} oracles", sep="-")
    for folder, count in sorted(counts.items()):
        stored = len(names(folder)) if (FOLDER / folder / "io.safetensors").exists() else None
        terminalreporter.line(f"{folder:<16}{count:>4}" + (f" of {stored} stored, inputs among them" if stored else ""))
