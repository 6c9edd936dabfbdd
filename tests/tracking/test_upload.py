"""From the spool into MLflow: every point once, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tracking.made_up import PARAMETERS, begin
from tests.waiting import PATIENCE, wait_for
from vtp.config import ROOT
from vtp.tracking import publish
from vtp.tracking.database import create_database, local_uri, locked
from vtp.tracking.runs import shown
from vtp.tracking.spool import Spool
from vtp.tracking.upload import Uploader, replay


def command(main: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m vtp.tracking ...` for a checkout that has no code of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    call = [sys.executable, "-m", "vtp.tracking", *arguments, str(main)]
    return subprocess.Popen(call, cwd=main, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_machine_without_mlflow_keeps_its_spool(tmp_path: Path, alone: list[Path]) -> None:
    with begin(tmp_path) as track:
        track.scalars(0, {"loss": 1.0})
    nothing = tmp_path / "nothing" / "mlflow"
    nothing.mkdir(parents=True)
    (nothing / "__init__.py").write_text("raise ModuleNotFoundError('No module named mlflow')")
    process = command(tmp_path, "upload", PYTHONPATH=os.pathsep.join([str(nothing.parent), str(ROOT)]))
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out.count("\n") == 1
    assert "no MLflow here" in out
    assert Spool(next((tmp_path / "runs" / "spool").glob("*.jsonl")), "x").pending()


def test_passwords_are_not_shown() -> None:
    assert shown("to https://me:secret@host/x failed") == "to https://host/x failed"


def test_a_second_replay_leaves_the_first_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path / "runs" / "spool" / "upload.lock"):
        assert replay(tmp_path) == 1
    assert "another process is uploading" in caplog.text


@pytest.fixture
def client(tmp_path: Path) -> Any:
    from mlflow import MlflowClient

    create_database(tmp_path)
    return MlflowClient(local_uri(tmp_path))


def runs_of(client: Any) -> tuple[list[Any], list[Any]]:
    """Parents and children."""
    runs = client.search_runs([client.get_experiment_by_name("vtp").experiment_id])
    parents = [run for run in runs if "vtp.variant" in run.data.tags]
    return parents, [run for run in runs if "vtp.variant" not in run.data.tags]


def points(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


@pytest.mark.trap
@pytest.mark.slow
def test_replay_builds_parent_and_child(tmp_path: Path, alone: list[Path], client: Any) -> None:
    with begin(tmp_path) as track:
        track.parameters({"optimizer": {"lr": 1e-3}})
        for step in range(5):
            track.scalars(step, {"loss": float(step), "odd name*": float("nan")})
        track.picture("samples", np.zeros((600, 300, 3), np.uint8), 4)
        track.final({"psnr": 21.5})
    publish(tmp_path, "f" * 16, PARAMETERS, {"pretrain": {"psnr": 21.5}, "evaluate": {"fid": 3.0}})
    assert replay(tmp_path) == 0

    [parent], [child] = runs_of(client)
    assert parent.data.params == {"seed": "0", "dit.width": "64", "dit.betas": "[0.9, 0.95]", "dit.path": "null"}
    assert parent.data.metrics == {"pretrain/psnr": 21.5, "evaluate/fid": 3.0}
    assert (parent.info.run_name, parent.info.status) == ("demo", "FINISHED")
    assert (child.info.run_name, child.info.status) == ("pretrain", "FINISHED")
    assert (
        child.data.tags.items()
        >= {
            "vtp.stage": "pretrain",
            "vtp.key": "abc",
            "host": "here",
            "mlflow.parentRunId": parent.info.run_id,
        }.items()
    )
    assert child.data.params == {"optimizer.lr": "0.001"}
    assert child.data.metrics["final/psnr"] == 21.5
    assert points(client, child, "loss") == [(step, float(step)) for step in range(5)]
    assert len(client.get_metric_history(child.info.run_id, "odd name_")) == 5
    artifacts = [Path(file.path).name for file in client.list_artifacts(child.info.run_id, "images")]
    assert [name.split("+")[:3] for name in artifacts] == [["samples", "step", "4"]] * 2
    assert len(list((tmp_path / "mlartifacts").rglob("*.png"))) == 1

    for note in (tmp_path / "runs" / "spool").glob("*.pos"):
        note.unlink()
    assert replay(tmp_path) == 0  # all of it a second time
    [again_parent], [again] = runs_of(client)
    assert points(client, again, "loss") == [(step, float(step)) for step in range(5)]
    assert again_parent.data.metrics == parent.data.metrics
    assert len(client.list_artifacts(again.info.run_id, "images")) == 2


@pytest.mark.trap
@pytest.mark.slow
def test_a_killed_uploader_costs_nothing(tmp_path: Path, alone: list[Path], client: Any) -> None:
    track = begin(tmp_path)
    count = 12000
    for start in range(0, count, 1000):
        for step in range(start, start + 1000):
            track.scalars(step, {"loss": step / 7})
    track.close()
    [path] = (tmp_path / "runs" / "spool").glob("*.jsonl")
    note = path.with_suffix(".pos")
    process = command(tmp_path, "upload")
    wait_for(note.exists, pause=0.001)
    process.kill()
    process.communicate()
    position = json.loads(note.read_text())
    assert 0 < position["offset"] < path.stat().st_size
    note.write_text(json.dumps(position | {"offset": 0}))  # it died before it noted any
    assert replay(tmp_path) == 0
    _, [child] = runs_of(client)
    assert points(client, child, "loss") == [(step, step / 7) for step in range(count)]
    assert child.info.status == "FINISHED"


@pytest.mark.trap
@pytest.mark.slow
def test_a_resumed_run_goes_on(tmp_path: Path, alone: list[Path], client: Any) -> None:
    writer = """
import os, signal, sys
from pathlib import Path
from vtp.tracking import Track, track
track._start_uploader = lambda main: None
track = Track.open("pretrain", "abc", main=Path(sys.argv[1]), variant="f" * 16, parameters={"seed": 0})
track.parameters({"workers": 0})
track.scalars(0, {"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", writer, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert replay(tmp_path) == 0
    [parent], [child] = runs_of(client)
    assert (child.info.status, parent.info.status) == ("KILLED", "KILLED")
    assert parent.info.run_name == "ffffffff"

    track = begin(tmp_path, parameters={"seed": 0})
    track.parameters({"workers": 4})
    track.scalars(1, {"loss": 0.5})
    uploader = Uploader(tmp_path)
    uploader.round()
    assert uploader.alive
    [parent], [child] = runs_of(client)
    assert (child.info.status, parent.info.status, parent.info.run_name) == ("RUNNING", "RUNNING", "demo")
    track.close()
    uploader.round()
    assert not uploader.alive
    [parent], [child] = runs_of(client)
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert points(client, child, "loss") == [(0, 1.0), (1, 0.5)]
    assert child.data.params == {"workers": "0"}


@pytest.mark.trap
@pytest.mark.slow
def test_curves_arrive_while_the_run_lasts(tmp_path: Path, client: Any) -> None:
    with begin(tmp_path) as track:
        track.scalars(0, {"loss": 1.0})
        wait_for(lambda: any("loss" in run.data.metrics for run in runs_of(client)[1]), pause=0.5)
        uploader = track._uploader
    assert uploader is not None
    assert uploader.wait(PATIENCE) == 0  # some seconds after the end
    assert runs_of(client)[1][0].info.status == "FINISHED"
