"""The whole pipeline in a fresh clone, at a few steps a stage: what runs, what is cached, what an edit re-runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtp import recipes
from vtp.config import ROOT

pytestmark = pytest.mark.slow

TINY = (
    "data.train_samples=1088",
    "data.validation_samples=1024",
    "model.sizes.small.encoder.depth=1",
    "model.sizes.small.decoder.depth=1",
    "model.sizes.small.text.depth=1",
    "pretrain.steps=4",
    "pretrain.batch=16",
    "pretrain.ssl_batch=4",
    "pretrain.reconstruction_batch=4",
    "finetune_decoder.steps=4",
    "finetune_decoder.batch=4",
    "finetune_decoder.discriminator_start=1",
    "finetune_decoder.adversarial_start=2",
    "dit.steps=4",
    "dit.depth=1",
    "dit.batch=8",
    "evaluate.metric_network.steps=4",
    "evaluate.metric_network.batch=8",
    "evaluate.probe.max_samples=256",
    "evaluate.probe.iterations=3",
    "sample.samples=1000",
    "sample.points=2",
    "run.log_every=2",
    "run.save_every=2",
)
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


def sh(folder: Path, *command: str, ok: bool = True) -> str:
    """Run a command in the clone with this environment's programs in front; its output, both streams."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"PATH": path, "VTP_TRACKING": "off", "DVC_NO_ANALYTICS": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    done = subprocess.run(command, cwd=folder, env=kept | quiet, capture_output=True, text=True)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def repro(folder: Path) -> set[str]:
    """Reproduce, and say which stages ran."""
    return set(re.findall(r"Running stage '(\w+)'", sh(folder, "dvc", "repro")))


def change(folder: Path, *overrides: str) -> None:
    recipes.apply("demo", overrides, folder / "params.yaml")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "project"
    for name in sh(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    sh(folder, "git", "init", "-q")
    sh(folder, "git", "add", "-A")
    sh(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    change(folder, *TINY)
    return folder


def test_the_pipeline_from_nothing_to_a_report(clone):
    assert repro(clone) == STAGES
    summary = json.loads((clone / "reports" / "summary.json").read_text())
    for name in ("zero_shot_top1", "linear_probe_top1", "linear_probe_bottleneck_top1", "precision", "recall"):
        assert 0 <= summary[name] <= 1
    assert summary["psnr"] > 3
    assert {"rfd", "rfd_before_gan", "gfd", "gfd_gaussian", "lpips_random", "num_classes"} <= summary.keys()
    page = (clone / "reports" / "index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    for name in re.findall(r'src="([^"]+)"', page):
        assert (clone / "reports" / name).is_file(), name
    # Nothing of a run is left for git but the lock file.
    status = sh(clone, "git", "status", "--porcelain").splitlines()
    assert {line[3:] for line in status} <= {"dvc.lock", "params.yaml"}

    start = time.monotonic()
    assert repro(clone) == set()
    assert time.monotonic() - start < 6  # room for a busy machine

    change(clone, *TINY, "run.workers=1", "run.picture_every=3")
    assert repro(clone) == set()

    change(clone, *TINY, "dit.steps=3")
    assert repro(clone) == {"train_dit", "sample", "evaluate_generation", "report"}

    change(clone, *TINY, "finetune_decoder.weights.adversarial=0.123")
    assert repro(clone) >= {"finetune_decoder", "evaluate_tokenizer", "evaluate_generation", "report"}
    lock = (clone / "dvc.lock").read_text()

    change(clone, *TINY)
    assert repro(clone) <= {"report"}  # everything comes from the cache

    change(clone, *TINY, "finetune_decoder.weights.adversarial=0.123")
    assert not repro(clone) & {"pretrain", "extract_latents", "train_dit", "sample"}
    assert (clone / "dvc.lock").read_text() == lock


def test_a_wrong_override_is_one_line(clone):
    said = sh(clone, sys.executable, "-m", "stages.prepare", "pretrain.steps=ten", ok=False)
    assert "pretrain.steps must be a whole number, not 'ten'" in said
    assert "Traceback" not in said
