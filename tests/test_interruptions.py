"""What happens to a pipeline in the middle of a stage: signals, a dead DVC, edits; and what the tools then believe."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clones import TINY, change, environment, sh
from tests.kills import processes, stages

pytestmark = [pytest.mark.slow, pytest.mark.trap]


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A command in a clone, with both streams to read."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, start_new_session=True, **both)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(folder: Path, stage: str) -> list[int]:
    """Steps of all checkpoints of a stage."""
    return sorted(int(path.name[5:]) for path in (folder / "runs" / stage).glob("*/checkpoints/step-*"))


@pytest.mark.parametrize(
    ("stage", "section", "number"),
    [
        ("pretrain", "pretrain", signal.SIGTERM),
        ("train_dit", "dit", signal.SIGUSR1),
        ("train_metric_network", "evaluate.metric_network", signal.SIGINT),
    ],
)
def test_a_signal_saves_within_ten_seconds_and_leaves_with_status_75(project, stage, section, number):
    process = start(project, sys.executable, "-m", f"stages.{stage}", f"{section}.steps=100000", "run.save_every=50")
    wait_for(lambda: max(steps(project, stage)) >= 50)
    process.send_signal(number)
    asked = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 75
    assert f"step {max(steps(project, stage))} is saved, and the same command goes on from it" in said
    assert "Traceback" not in said


def test_a_stage_that_outlives_its_dvc_is_waited_for(project):
    change(project, *TINY, "dit.steps=1500")  # longer than DVC takes to come to this stage again
    first = start(project, "dvc", "repro", "train_dit")
    wait_for(lambda: max(steps(project, "train_dit")) > 4)
    first.kill()  # DVC alone
    first.wait()
    assert stages(processes(project)).keys() == {"train_dit"}
    said = sh(project, "dvc", "repro", "train_dit")
    assert "is held by process" in said
    assert "going on from step 1500" in said  # the orphan trained to its end, and nobody beside it
    assert "Running stage" not in sh(project, "dvc", "repro", "train_dit")


@pytest.mark.parametrize("edit", ["parameters", "code"])
def test_an_edit_during_a_stage_is_not_recorded_as_what_it_used(project, edit):
    length = "dit.steps=450"  # which no other test trains to its end: nothing may come from the cache
    change(project, *TINY, length)
    before = (project / "dvc.lock").read_text()
    process = start(project, "dvc", "repro", "train_dit")
    wait_for(lambda: max(steps(project, "train_dit")) > 4)
    if edit == "parameters":
        change(project, *TINY, length, "dit.optimizer.rate=0.5")
    else:
        file = project / "vtp" / "models" / "dit.py"
        file.write_text(file.read_text() + "# edited\n")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    changed = "dit.optimizer.rate (" if edit == "parameters" else "vtp/models/dit.py"
    assert f"train_dit: {changed}" in said
    assert "changed while train_dit ran" in said
    assert (project / "dvc.lock").read_text() == before


def test_another_size_is_another_model_and_the_first_comes_back_from_the_cache(project):
    manifest = project / "data" / "pretrain" / "manifest.json"
    first = manifest.read_text()
    assert "Running stage 'pretrain'" in sh(project, "dvc", "exp", "run", "-S", "model.size=base", "pretrain")
    other = manifest.read_text()
    assert other != first
    sh(project, "git", "checkout", "-q", "params.yaml")
    assert "Running stage" not in sh(project, "dvc", "repro", "pretrain")
    assert manifest.read_text() == first


def test_forced_stages_change_nothing_and_a_stale_dvc_root_leads_nowhere_else(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    said = sh(project, "dvc", "repro", "-f", "-s", "prepare", "sample", "report", DVC_ROOT=str(elsewhere))
    assert said.count("Running stage") == 3
    assert sh(project, "git", "status", "--porcelain") == ""
    assert not elsewhere.exists()
    assert "Running stage" not in sh(project, "dvc", "repro")
