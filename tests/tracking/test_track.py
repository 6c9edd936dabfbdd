"""Tracking: what a training writes, what reaches MLflow, and that no failure of either reaches the training."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.waiting import PATIENCE, wait_for
from vtp.tracking import Bar, Track, database, flatten, publish, ui, upload
from vtp.tracking.track import Spool

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = {"seed": 0, "dit": {"width": 64, "betas": [0.9, 0.95], "path": None}}


@pytest.fixture(autouse=True)
def _tracking_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTP_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No uploader is started; the list holds the checkouts that asked for one."""
    asked: list[Path] = []

    class Idle:
        def poll(self) -> None:
            return None

    monkeypatch.setattr("vtp.tracking.track._start_uploader", lambda main: asked.append(main) or Idle())
    return asked


def begin(main: Path, key: str = "abc", stage: str = "pretrain", parameters: Any = PARAMETERS) -> Track:
    return Track.open(stage, key, main=main, variant="f" * 16, parameters=parameters, run_name="demo", tags={"host": "here"})


def lines(main: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (main / "runs" / "spool" / name).read_text().splitlines()]


def command(main: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m vtp.tracking ...` for a checkout that has no code of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    call = [sys.executable, "-m", "vtp.tracking", *arguments, str(main)]
    return subprocess.Popen(call, cwd=main, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# What a training writes


def test_each_record_is_a_line(tmp_path: Path, alone: list[Path]) -> None:
    with begin(tmp_path) as track:
        assert alone == []  # nothing to upload yet
        track.scalars(7, {"loss": 0.5, "clip": np.float32(2)})
        assert alone == [tmp_path]
        track.parameters({"optimizer": {"lr": 1e-3}})
        track.final({"psnr": 21.5})
    about, *rest = lines(tmp_path, "pretrain-abc-0000.jsonl")
    assert about["kind"] == "open"
    assert about["value"] == {
        "stage": "pretrain",
        "key": "abc",
        "variant": "f" * 16,
        "run_name": "demo",
        "tags": {"host": "here"},
        "parameters": {"seed": 0, "dit.width": 64, "dit.betas": [0.9, 0.95], "dit.path": None},
    }
    assert [(r["kind"], r["key"], r["value"], r["step"]) for r in rest] == [
        ("scalar", "loss", 0.5, 7),
        ("scalar", "clip", 2.0, 7),
        ("parameter", "optimizer.lr", 1e-3, 0),
        ("final", "psnr", 21.5, 0),
        ("end", "status", "FINISHED", 0),
    ]
    assert all(abs(r["ts"] / 1000 - time.time()) < 60 for r in rest)
    assert alone == [tmp_path]


def test_records_are_there_before_the_run_ends(tmp_path: Path, alone: list[Path]) -> None:
    track = begin(tmp_path)
    for step in range(3):
        track.scalars(step, {"loss": 1.0})
        assert len(lines(tmp_path, "pretrain-abc-0000.jsonl")) == 2 + step
    track.close()


def test_a_picture_is_a_png_and_a_line(tmp_path: Path, alone: list[Path]) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with begin(tmp_path) as track:
        track.picture("samples/ema", pixels, 3)
    record = lines(tmp_path, "pretrain-abc-0000.jsonl")[1]
    assert (record["kind"], record["key"], record["step"]) == ("picture", "samples/ema", 3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "runs" / "spool" / record["value"])), pixels)


def test_a_resumed_stage_gets_a_file_of_its_own(tmp_path: Path, alone: list[Path]) -> None:
    first, second, other = begin(tmp_path), begin(tmp_path), begin(tmp_path, key="def")
    for track in (first, second, other):
        track.close()
    names = sorted(path.name for path in (tmp_path / "runs" / "spool").glob("*.jsonl"))
    assert names == ["pretrain-abc-0000.jsonl", "pretrain-abc-0001.jsonl", "pretrain-def-0000.jsonl"]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_end_of_the_block_decides_the_status(
    tmp_path: Path, alone: list[Path], error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), begin(tmp_path):
        raise error
    assert lines(tmp_path, "pretrain-abc-0000.jsonl")[-1]["value"] == status


def use_everything(track: Track) -> None:
    track.scalars(0, {"loss": 1.0})
    track.picture("p", np.zeros((2, 2, 3), np.uint8), 0)
    track.parameters({"a": 1})
    track.final({"psnr": 1.0})
    track.close()
    track.close()


def test_off_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTP_TRACKING", "off")
    use_everything(begin(tmp_path))
    publish(tmp_path, "f" * 16, PARAMETERS, {"a": {"b": 1.0}})
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("vtp.dist.rank", lambda: 1)
    caplog.set_level(logging.INFO)
    track = begin(tmp_path)
    bar = track.bar(1)
    bar.advance(8, 1.0)
    bar.close()
    use_everything(track)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


# What goes wrong stays here


def test_a_checkout_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs").write_text("in the way")
    use_everything(begin(tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_broken_call_is_one_warning(tmp_path: Path, alone: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with begin(tmp_path) as track:
        track.picture("float", np.zeros((2, 2, 7)), 0)
        track.scalars(1, {"loss": "not a number"})  # type: ignore[dict-item]
        track.scalars(2, {"loss": 2.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [record["step"] for record in lines(tmp_path, "pretrain-abc-0000.jsonl")] == [0, 2, 0]


@pytest.mark.trap
def test_half_a_line_harms_no_other(tmp_path: Path, alone: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    track = begin(tmp_path)
    file = track._file
    assert file is not None

    class Full:
        def write(self, data: bytes) -> int:
            return file.write(data[: len(data) // 2])

    track._file = Full()  # type: ignore[assignment]
    track.scalars(1, {"loss": 1.0})
    track._file = file
    track.scalars(2, {"loss": 2.0})
    track.close()
    spool = Spool(tmp_path / "runs" / "spool" / "pretrain-abc-0000.jsonl", "x")
    records, offset = spool.read()
    assert [(record["kind"], record["step"]) for record in records] == [("open", 0), ("scalar", 2), ("end", 0)]
    assert offset == spool.path.stat().st_size


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


def test_training_loads_no_mlflow(tmp_path: Path) -> None:
    text = "import sys, vtp.tracking, vtp.tracking.upload; print([m for m in ('mlflow', 'torch', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# The reader's side


def test_a_writer_is_alive_until_it_closes(tmp_path: Path, alone: list[Path]) -> None:
    track = begin(tmp_path)
    spool = Spool(tmp_path / "runs" / "spool" / "pretrain-abc-0000.jsonl", "x")
    assert spool.alive()
    track.close()
    assert not spool.alive()


def test_a_reader_takes_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a-b-0000.jsonl"
    path.write_bytes(b'{"kind": 1}\n{"kind": 2}\n{"ki')
    spool = Spool(path, "x")
    records, spool.position.offset = spool.read()
    assert records == [{"kind": 1}, {"kind": 2}]
    with path.open("ab") as file:
        file.write(b'nd": 3}\n')
    assert spool.read() == ([{"kind": 3}], path.stat().st_size)


def test_a_position_holds_for_one_destination(tmp_path: Path) -> None:
    path = tmp_path / "a-b-0000.jsonl"
    path.write_bytes(b"{}\n")
    spool = Spool(path, "here")
    spool.position.offset, spool.position.done = 3, True
    spool.note()
    assert not Spool(path, "here").pending()
    there = Spool(path, "there")
    assert (there.pending(), there.elsewhere, there.position.offset) == (True, True, 0)


def test_passwords_are_not_shown() -> None:
    assert upload.shown("to https://me:secret@host/x failed") == "to https://host/x failed"


def test_a_second_replay_leaves_the_first_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with database.locked(tmp_path / "runs" / "spool" / "upload.lock"):
        assert upload.replay(tmp_path) == 1
    assert "another process is uploading" in caplog.text


# Into MLflow


@pytest.fixture
def client(tmp_path: Path) -> Any:
    from mlflow import MlflowClient

    database.create_database(tmp_path)
    return MlflowClient(database.local_uri(tmp_path))


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
    assert upload.replay(tmp_path) == 0

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
    assert upload.replay(tmp_path) == 0  # all of it a second time
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
    assert upload.replay(tmp_path) == 0
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
    assert upload.replay(tmp_path) == 0
    [parent], [child] = runs_of(client)
    assert (child.info.status, parent.info.status) == ("KILLED", "KILLED")
    assert parent.info.run_name == "ffffffff"

    track = begin(tmp_path, parameters={"seed": 0})
    track.parameters({"workers": 4})
    track.scalars(1, {"loss": 0.5})
    uploader = upload.Uploader(tmp_path)
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


# The bar


def test_progress_without_a_terminal_is_lines_of_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("vtp.tracking.track.time.monotonic", lambda: float(next(clock)))
    bar = Bar("pretrain", 12, 4, shown=True)
    for step in range(8):
        bar.advance(images=50, loss=1 / (step + 1))
    bar.close()
    assert [record.getMessage() for record in caplog.records] == [
        "pretrain step 7/12: loss 0.3333, 5 images/s",
        "pretrain step 10/12: loss 0.1667, 5 images/s",
        "pretrain step 12/12: loss 0.125, 5 images/s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar("pretrain", 3, 1, shown=True)
    bar.advance(8, 0.25)
    bar.advance(8)
    bar.close()
    assert "3/3" in terminal.getvalue()
    assert "loss 0.25" in terminal.getvalue()


def test_flatten_joins_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}, ".") == {"a.b.c": 1, "a.d": [2], "e": None}


def test_the_comparison_page_names_the_newest_variants_oldest_first(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (run_uuid, experiment_id, lifecycle_stage, start_time)")
        database.execute("create table tags (key, value, run_uuid)")
        rows = [("old", "active", 1), ("gone", "deleted", 2), ("new", "active", 3), ("child", "active", 4)]
        database.executemany("insert into runs values (?, 1, ?, ?)", rows)
        marked = [("vtp.variant", "v", run) for run, _, _ in rows if run != "child"]
        database.executemany("insert into tags values (?, ?, ?)", marked)
    runs = ui.variants(tmp_path)
    assert runs == [("new", "1"), ("old", "1")]
    address = ui.comparison(runs, 5000)
    assert unquote(address) == 'http://127.0.0.1:5000/#/compare-runs?runs=["old", "new"]&experiments=["1"]'


@pytest.mark.slow
def test_the_pages_open_by_themselves_where_there_is_a_display(tmp_path: Path, alone: list[Path]) -> None:
    publish(tmp_path, "f" * 16, PARAMETERS, {"pretrain": {"psnr": 21.5}})
    assert upload.replay(tmp_path) == 0
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened.new; mv {tmp_path}/opened.new {tmp_path}/opened\n')
    browser.chmod(0o755)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "DISPLAY": ":0", "BROWSER": f"{browser} %s"}
    call = [sys.executable, "-m", "vtp.tracking", "ui", "--port", str(port), str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(call, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for((tmp_path / "opened").exists)
        address = (tmp_path / "opened").read_text().strip()
        assert address in (tmp_path / "log").read_text()
        assert address.startswith(f"http://127.0.0.1:{port}/#/compare-runs?runs=")
        assert ui.serve(tmp_path, port) == 1  # taken
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


def test_no_page_is_served_from_a_database_that_is_not_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert ui.serve(tmp_path, 5999) == 1
    assert "mlflow.db is not whole" in caplog.text
