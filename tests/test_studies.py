"""Studies from the command line in a clone: through DVC, and the baselines directly; killed, resumed, repeated."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import clone, environment, processor_seconds, sh
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.slow

STUDY = (sys.executable, "-m", "vtp", "study")
SMOKE = (*STUDY, "run", "studies/smoke.yaml", "--only", "ae")
SAME_BITS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return clone(tmp_path_factory.mktemp("studies") / "project")


def records(folder: Path, study: str) -> dict[str, dict]:
    found = sorted((folder / "docs" / "study" / study).glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in found}


@pytest.fixture(scope="module")
def experiments(project) -> str:
    """What a study said that ran as experiments, one after another."""
    return sh(project, *SMOKE, **SAME_BITS)


def test_variants_run_as_experiments_one_after_another_and_a_second_call_does_nothing(project, experiments):
    assert "3 cells, 3 to run" in experiments
    assert "3 done" in experiments
    found = records(project, "smoke")
    assert set(found) == {"ae_4", "ae_8", "ae_12"}
    flops = [found[name]["pretrain_flops"] for name in ("ae_4", "ae_8", "ae_12")]
    assert flops[1] == 2 * flops[0]
    assert flops[2] == 3 * flops[0]
    for record in found.values():
        assert record["status"] == "done"
        assert all(record[name] is not None for name in ("rfd", "gfd", "gfd_guided", "linear_probe_top1", "psnr"))
        assert record["zero_shot_top1"] is None
    assert len({record["metric_network"] for record in found.values()} - {None}) == 1
    # What they share was made once, and the longer ones went on from the shorter ones.
    assert len(list((project / "runs" / "prepare").glob("*/finished.json"))) == 1
    assert len(list((project / "runs" / "pretrain" / "shared").glob("*/step-*"))) == 3
    assert sh(project, "git", "status", "--porcelain", "params.yaml") == ""

    before = processor_seconds()
    assert "3 cells, 0 to run" in sh(project, *SMOKE)
    assert processor_seconds() - before < 20
    assert "wrote" in sh(project, *STUDY, "report")
    assert "ae_12" in (project / "docs" / "study.md").read_text()
    assert (project / "docs" / "study" / "smoke" / "figures" / "sheet.png").is_file()


def test_two_cells_at_once_leave_the_records_of_one_after_another(project, experiments, tmp_path):
    other = clone(tmp_path / "other")
    assert "3 done" in sh(other, *SMOKE, "--direct", "--at-once", "2", **SAME_BITS)
    # Also with the longer trainings not going on from the shorter ones, which run beside them.
    assert {name: record | {"seconds": 0} for name, record in records(other, "smoke").items()} == {
        name: record | {"seconds": 0} for name, record in records(project, "smoke").items()
    }
    assert len(list((other / "runs" / "prepare").glob("*/finished.json"))) == 1
    assert "3 cells, 0 to run" in sh(other, *SMOKE, "--direct", "--at-once", "2")


def test_every_baseline_runs_directly_in_under_a_minute_and_a_study_that_was_stopped_goes_on(project, tmp_path):
    command = [*STUDY, "run", "studies/smoke-baselines.yaml", "--direct"]
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen([*command, "--only", "vavae"], cwd=project, env=environment(), stderr=said)
    kept = project / "runs" / "studies" / "stages" / "pretrain"
    wait_for(lambda: list(kept.glob("[0-9a-f]*")) or running.poll() is not None)  # the teacher is there
    assert running.poll() is None, (tmp_path / "said").read_text()
    assert "runs/studies/lock is held by process" in sh(project, *command, ok=False)
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == 75
    before = seconds_used()
    sh(project, sys.executable, "-c", "import torch._dynamo, torchvision, timm")
    imports, before = seconds_used() - before, seconds_used()
    assert "7 done" in sh(project, *command, **SAME_BITS)
    assert seconds_used() - before < 7 * max(60, 12 * imports)  # which take five seconds; a machine may be slow
    found = records(project, "smoke-baselines")
    joint = ("ae", "clip+ae", "ssl+ae", "clip+ssl+ae")
    assert set(found) == {f"{name}_20" for name in (*joint, "vavae", "frozen", "kl-vae")}
    for record in found.values():
        assert (record["status"], record["pretrain_steps"], record["dit_steps"]) == ("done", 20, 20)
        assert all(record[name] is not None for name in ("rfd_before_gan", "rfd", "gfd", "gfd_guided", "pretrain_flops"))
        assert record["psnr"] > 6
        assert record["linear_probe_top1"] > 0
        assert record["linear_probe_bottleneck_top1"] > 0
        assert (record["zero_shot_top1"] is not None) == ("clip" in record["objective"])
    assert len({record["metric_network"] for record in found.values()} - {None}) == 1
    for stage in ("pretrain", "train_metric_network", "finetune_decoder", "train_dit"):
        reports = list((project / "runs" / "studies" / "stages" / stage).glob("*/reports/*.json"))
        assert {json.loads(file.read_text())["step"] for file in reports} == {20}
    assert "7 cells, 0 to run" in sh(project, *command)
    assert "7 done" in sh(project, *STUDY, "status", "studies/smoke-baselines.yaml")


def seconds_used() -> float:
    """By programs that were started here and have ended: whatever else the machine does, and it may do a lot, is left out."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
