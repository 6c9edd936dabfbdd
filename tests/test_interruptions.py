"""What happens to a pipeline in the middle of a stage: signals, a dead DVC, edits; and what the tools then believe."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.clones import TINY, change, environment, sh
from tests.kills import processes, stages
from tests.waiting import PATIENCE, delayed, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.trap]


class Command:
    """A command that runs in a clone; both its streams go to a file."""

    def __init__(self, folder: Path, *command: str) -> None:
        self._file = Path(tempfile.mkdtemp(dir=folder.parent)) / "said"
        with self._file.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True
            )

    def said(self) -> str:
        return self._file.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds, which it does before the command ends."""
        wait_for(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()


def newest(folder: Path, stage: str) -> int:
    """Step of the newest of all checkpoints of a stage."""
    return max(int(path.name[5:]) for path in (folder / "runs" / stage).glob("*/checkpoints/step-*"))


@contextmanager
def standing(folder: Path) -> Iterator[None]:
    """During the block the stage that is at work does not go on."""
    found = [process for process in processes(folder) if stages([process])]
    for process in found:
        process.suspend()
    yield
    for process in found:
        process.resume()


@pytest.mark.parametrize(
    ("stage", "section", "number"),
    [
        ("pretrain", "pretrain", signal.SIGTERM),
        ("train_dit", "dit", signal.SIGUSR1),
        ("train_metric_network", "evaluate.metric_network", signal.SIGINT),
    ],
)
def test_a_signal_saves_within_ten_seconds_and_leaves_with_status_75(project, stage, section, number):
    run = Command(project, sys.executable, "-m", f"stages.{stage}", f"{section}.steps=100000", "run.save_every=50")
    run.wait_for(lambda: newest(project, stage) >= 50)
    asked, idle = time.monotonic(), delayed(run.process.pid)
    run.process.send_signal(number)
    seconds = 0.0
    while run.process.poll() is None:
        with suppress(OSError):  # it has just ended
            seconds = time.monotonic() - asked - (delayed(run.process.pid) - idle)
        assert seconds < 10
        time.sleep(0.02)
    assert run.process.returncode == 75
    assert f"step {newest(project, stage)} is saved, and the same command goes on from it" in run.said()
    assert "Traceback" not in run.said()


def test_a_stage_that_outlives_its_dvc_is_waited_for(project):
    change(project, *TINY, "dit.steps=430")
    first = Command(project, "dvc", "repro", "train_dit")
    first.wait_for(lambda: newest(project, "train_dit") > 4)
    with standing(project):
        first.process.kill()  # DVC alone
        first.process.wait()
        assert stages(processes(project)).keys() == {"train_dit"}
        second = Command(project, "dvc", "repro", "train_dit")
        second.wait_for(lambda: "is held by process" in second.said())
    assert second.process.wait(PATIENCE) == 0, second.said()
    assert "going on from step 430" in second.said()  # the orphan trained to its end, and nobody beside it
    assert "Running stage" not in sh(project, "dvc", "repro", "train_dit")


@pytest.mark.parametrize("edit", ["parameters", "code"])
def test_an_edit_during_a_stage_is_not_recorded_as_what_it_used(project, edit):
    length = "dit.steps=450"  # which no other test trains to its end: nothing may come from the cache
    change(project, *TINY, length)
    before = (project / "dvc.lock").read_text()
    run = Command(project, "dvc", "repro", "train_dit")
    run.wait_for(lambda: newest(project, "train_dit") > 4)
    with standing(project):
        if edit == "parameters":
            change(project, *TINY, length, "dit.optimizer.rate=0.5")
        else:
            file = project / "vtp" / "models" / "dit.py"
            file.write_text(file.read_text() + "# edited\n")
    assert run.process.wait(PATIENCE) != 0
    changed = "dit.optimizer.rate (" if edit == "parameters" else "vtp/models/dit.py"
    assert f"train_dit: {changed}" in run.said()
    assert "changed while train_dit ran" in run.said()
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
