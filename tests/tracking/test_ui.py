"""MLflow's pages: which runs they show, and that they open."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.tracking.made_up import PARAMETERS
from tests.waiting import PATIENCE, wait_for
from vtp.config import ROOT
from vtp.tracking import publish, ui, upload


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
