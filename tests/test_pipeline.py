"""The whole pipeline in a fresh clone, at a few steps a stage: what runs, what is cached, what an edit re-runs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clones import TINY, change, processor_seconds, sh

pytestmark = [pytest.mark.slow, pytest.mark.trap]

STAGES = {
    "prepare",
    "pretrain",
    "train_metric_network",
    "finetune_decoder",
    "extract_latents",
    "train_dit",
    "sample",
    "evaluate_tokenizer",
    "evaluate_generation",
    "report",
}


def repro(folder: Path) -> set[str]:
    """Reproduce, and say which stages ran."""
    return set(re.findall(r"Running stage '(\w+)'", sh(folder, "dvc", "repro")))


def cost(folder: Path, *command: str) -> float:
    """Seconds of processor that a command takes."""
    before = processor_seconds()
    sh(folder, *command)
    return processor_seconds() - before


def test_the_pipeline_from_nothing_to_a_report(project):
    assert set(re.findall(r"Running stage '(\w+)'", (project.parent / "said").read_text())) == STAGES
    summary = json.loads((project / "reports" / "summary.json").read_text())
    for name in ("zero_shot_top1", "linear_probe_top1", "linear_probe_bottleneck_top1", "precision", "recall"):
        assert 0 <= summary[name] <= 1
    assert summary["psnr"] > 3
    assert {"rfd", "rfd_before_gan", "gfd", "gfd_gaussian", "lpips_random", "num_classes"} <= summary.keys()
    page = (project / "reports" / "index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert (project / "reports" / name).is_file(), name
    assert sh(project, "git", "status", "--porcelain") == ""  # nothing of a run is left for git but the lock file

    assert repro(project) == set()
    assert cost(project, "dvc", "repro") < 4 * cost(project, "dvc", "stage", "list")  # 2, measured

    change(project, *TINY, "run.workers=1", "run.picture_every=3")
    assert repro(project) == set()

    change(project, *TINY, "dit.steps=3")
    assert repro(project) == {"train_dit", "sample", "evaluate_generation", "report"}

    change(project, *TINY, "finetune_decoder.weights.adversarial=0.123")
    assert repro(project) >= {"finetune_decoder", "evaluate_tokenizer", "evaluate_generation", "report"}
    lock = (project / "dvc.lock").read_text()

    change(project, *TINY)
    assert repro(project) <= {"report"}  # everything comes from the cache

    change(project, *TINY, "finetune_decoder.weights.adversarial=0.123")
    assert not repro(project) & {"pretrain", "extract_latents", "train_dit", "sample"}
    assert (project / "dvc.lock").read_text() == lock


def test_solvers_are_compared_on_the_trained_transformer(project):
    few = ("--samples", "64", "--batch", "64", "--budgets", "2", "--minutes", "5", "--out", "compared")
    assert "| euler | 3 | 2 |" in sh(project, sys.executable, "-m", "benchmarks.solvers", *few)
    assert (project / "compared" / "cpu" / "solvers.png").is_file()
    shutil.rmtree(project / "compared")


def test_a_wrong_override_is_one_line(project):
    said = sh(project, sys.executable, "-m", "stages.prepare", "pretrain.steps=ten", ok=False)
    assert "pretrain.steps must be a whole number, not 'ten'" in said
    assert "Traceback" not in said
