"""The checkout's own database: whole or not at all, whoever starts together or is killed; and destinations that fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.waiting import PATIENCE, wait_for
from vtp.config import ROOT
from vtp.tracking.database import QUIET, SIDE_FILES, create_database, forget, local_uri, locked, whole
from vtp.tracking.spool import Spool
from vtp.tracking.upload import replay

pytestmark = pytest.mark.trap

TRAINING = """
import logging, os, sys, time
from pathlib import Path
from vtp.tracking import Track
logging.basicConfig()
main, stage = Path(sys.argv[1]), sys.argv[2]
began, inside = time.monotonic(), 0.0
with Track.open(stage, "abc", main=main, variant="f" * 16, parameters={"seed": 0}) as track:
    for step in range(200):
        before = time.monotonic()
        track.scalars(step, {"loss": step / 7, "psnr": 2.0})
        inside += time.monotonic() - before
        time.sleep(0.005)  # a step's work
    before = time.monotonic()
    track.final({"psnr": 2.0})
print(inside + time.monotonic() - before, track._uploader.pid, flush=True)
"""


@pytest.fixture(autouse=True)
def _started_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def train(main: Path, stage: str = "pretrain", **environment: str) -> subprocess.Popen[str]:
    """A process that tracks a short training, with an uploader of its own; says what tracking cost, and the uploader's id."""
    call = [sys.executable, "-c", TRAINING, str(main), stage]
    return subprocess.Popen(call, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def ended(training: subprocess.Popen[str]) -> tuple[float, int]:
    """Wait for a training to end well; the seconds that tracking took, and its uploader."""
    out, _ = training.communicate(timeout=PATIENCE)
    assert training.returncode == 0
    seconds, uploader = out.split()
    return float(seconds), int(uploader)


def kill_uploader(main: Path, number: int) -> None:
    os.kill(number, signal.SIGKILL)
    with locked(main / "runs" / "spool" / "upload.lock"):
        pass


def healthy(server: str) -> bool:
    """Whether MLflow answers there; its port is open before."""
    with suppress(OSError), urlopen(f"{server}/health", timeout=PATIENCE) as answer:
        return answer.status == 200
    return False


def uploaded(main: Path, to: str) -> bool:
    spools = [Spool(path, to) for path in (main / "runs" / "spool").glob("*.jsonl")]
    return bool(spools) and not any(spool.pending() for spool in spools)


def assert_each_point_once(uri: str, stages: list[str]) -> Any:
    """One parent and a child for each stage, every point of its curves once; MLflow's client."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("vtp").experiment_id])
    assert sorted(run.data.tags.get("vtp.stage", "") for run in runs) == sorted(["", *stages])
    for run in runs:
        assert run.info.status == "FINISHED"
        if "vtp.stage" in run.data.tags:
            loss = client.get_metric_history(run.info.run_id, "loss")
            assert sorted((point.step, point.value) for point in loss) == [(step, step / 7) for step in range(200)]
    return client


@pytest.mark.slow
def test_four_stages_that_start_without_a_database_end_with_one(tmp_path: Path) -> None:
    """The uploader that makes it is killed meanwhile, too."""
    stages = ["pretrain", "train_metric_network", "train_dit", "sample"]
    trainings = [train(tmp_path, stage) for stage in stages]
    wait_for(lambda: any(path.stat().st_size > 100_000 for path in tmp_path.glob(".mlflow.db.*[0-9]")))
    [half] = tmp_path.glob(".mlflow.db.*[0-9]")
    os.kill(int(half.suffix[1:]), signal.SIGKILL)
    assert not (tmp_path / "mlflow.db").exists()
    for training in trainings:
        ended(training)
    wait_for(lambda: uploaded(tmp_path, local_uri(tmp_path)))
    assert_each_point_once(local_uri(tmp_path), stages)
    assert not list(tmp_path.glob(".mlflow.db.*"))


@pytest.mark.slow
def test_half_a_database_is_moved_aside_and_the_new_one_gets_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, uploader = ended(train(tmp_path))
    wait_for(lambda: uploaded(tmp_path, local_uri(tmp_path)))
    kill_uploader(tmp_path, uploader)
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    # MLflow's own way of making one, killed in the middle of it.
    code = (
        "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore\n"
        "SqlAlchemyStore(f'sqlite:///{sys.argv[1]}/mlflow.db', sys.argv[1])"
    )
    database = tmp_path / "mlflow.db"
    maker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    wait_for(lambda: database.exists() and database.stat().st_size > 100_000)
    maker.kill()
    maker.wait()
    assert not whole(tmp_path)
    (tmp_path / "mlflow.db-wal").write_bytes(b"of the broken one")
    long_ago = time.time() - 2 * QUIET
    os.utime(database, (long_ago, long_ago))

    assert replay(tmp_path) == 0
    [aside] = [path for path in tmp_path.glob("mlflow.db.broken-*") if not path.name.endswith(SIDE_FILES)]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("vtp")] == [
        f"{database} was never finished or is damaged; it is {aside.name} now, and a new one takes its place"
    ]
    assert_each_point_once(local_uri(tmp_path), ["pretrain"])


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_what_is_no_database_is_not_whole(tmp_path: Path, content: bytes) -> None:
    assert not whole(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(content)
    assert not whole(tmp_path)


def test_a_database_that_somebody_may_be_making_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    with pytest.raises(OSError, match=r"mlflow\.db is not whole, but changed less than a minute ago"):
        create_database(tmp_path)
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_locked_database_counts_as_whole(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
        database.execute("create table experiments (id)")
        assert not whole(tmp_path)
        database.execute("insert into experiments values (1)")
        assert whole(tmp_path)
        database.execute("begin exclusive")
        assert whole(tmp_path)


# Destinations that fail


@pytest.fixture(params=["closed port", "black hole"])
def dead_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that refuses connections, or takes them and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "black hole":
            listener.listen()
        yield f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_server_costs_a_training_less_than_a_second_and_no_point(
    tmp_path: Path, dead_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    seconds, uploader = ended(train(tmp_path, MLFLOW_TRACKING_URI=dead_server))
    kill_uploader(tmp_path, uploader)
    assert seconds < 1.0
    [spool] = (tmp_path / "runs" / "spool").glob("*.jsonl")
    assert len(spool.read_text().splitlines()) == 1 + 400 + 1 + 1


@pytest.mark.slow
def test_a_server_that_comes_up_later_gets_each_point_once_and_keeps_its_own_artifacts(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri, main, there = f"http://127.0.0.1:{port}", tmp_path / "main", tmp_path / "server"
    there.mkdir()
    call = [sys.executable, "-m", "vtp.tracking", "replay", str(main)]
    kill_uploader(main, ended(train(main, MLFLOW_TRACKING_URI=uri))[1])
    tried = subprocess.run(call, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True)
    assert tried.returncode == 1
    assert "nothing more uploaded" in tried.stdout
    assert "Traceback" not in tried.stdout + tried.stderr
    where = ["--backend-store-uri", f"sqlite:///{there / 'its.db'}", "--artifacts-destination", str(there / "artifacts")]
    serve = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *where]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (there / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=there, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: healthy(uri))
        for _ in range(2):
            for note in (main / "runs" / "spool").glob("*.pos"):
                note.unlink()
            done = subprocess.run(call, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        client = assert_each_point_once(uri, ["pretrain"])
        assert client.get_experiment_by_name("vtp").artifact_location.startswith("mlflow-artifacts:")
        assert not list(main.glob("mlflow.db*"))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


@pytest.mark.slow
def test_a_database_that_another_process_has_locked_costs_a_wait_and_no_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_database(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        seconds, uploader = ended(train(tmp_path))
        assert seconds < 1.0
        kill_uploader(tmp_path, uploader)
        assert replay(tmp_path) == 1
        [said] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert said.startswith("nothing more uploaded: ")
        assert "database is locked" in said
        assert "\n" not in said
        other.execute("rollback")
    assert replay(tmp_path) == 0
    assert_each_point_once(local_uri(tmp_path), ["pretrain"])


def test_a_database_of_another_name_keeps_its_positions(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "spool"
    folder.mkdir(parents=True)
    (folder / "here.pos").write_text(json.dumps({"to": local_uri(tmp_path)}))
    (folder / "there.pos").write_text(json.dumps({"to": "https://host"}))
    (folder / "cut.pos").write_text('{"to')
    forget(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["there.pos"]
