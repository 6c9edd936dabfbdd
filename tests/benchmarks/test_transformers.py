from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import decoder, dit, sampling, tokenizer
from benchmarks.kernels import SETTINGS
from tests.waiting import PATIENCE
from vtp.config import ROOT


def test_a_step_costs_what_it_is_known_to_cost() -> None:
    """LightningDiT tells 118.7 multiply-adds for a forward pass of XL/1; a step is three times that, counted in both."""
    assert dit.operations(dit.XL, 1) == pytest.approx(3 * 2 * 118.6e9, rel=0.01)


def test_kernels_are_timed_under_each_of_their_settings() -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "--tiny", "gate_plus_backward", "added_norm"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    told = [line.split()[0] for line in done.stderr.splitlines() if "GB/s" in line]
    assert told == ["a"] + [name for name in ("gate_plus_backward", "added_norm") for _ in SETTINGS[name][1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "name"),
    [
        (dit, ["--work", "W3-xl", "--runs", "2"], "W3-xl"),
        (tokenizer, ["--work", "W4-encode", "--runs", "2"], "W4-encode"),
        (tokenizer, ["--work", "W4-decode", "--runs", "2"], "W4-decode"),
        (decoder, ["--work", "W6", "--runs", "2"], "W6-tiny"),
        (sampling, ["--points", "4"], "W5"),
        (sampling, ["--points", "4", "--solver", "adams2", "--name", "few"], "few"),
    ],
)
def test_a_small_benchmark_checks_itself_and_records(module, arguments, name, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--tiny", "--reference", "--out", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module.main()
    values = json.loads((tmp_path / "cpu" / f"{name}.json").read_text())
    assert values["milliseconds"] > 0
    assert values["images_per_second"] > 0
    assert values["share_of_ceiling"] > 0
