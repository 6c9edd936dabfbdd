"""MLflow's pages over the checkout's own database, and the address that shows its variants side by side."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from vtp.tracking_database import create_database, local_uri
from vtp.tracking_upload import destination, quiet, shown

log = logging.getLogger(__name__)

MOST = 12  # variants that one page still shows side by side


def variants(main: Path) -> list[tuple[str, str]]:
    """The newest parent runs, one for each variant of the pipeline: (run id, experiment id)."""
    query = (
        "select run_uuid, experiment_id from runs join tags using (run_uuid) "
        "where key = 'vtp.variant' and lifecycle_stage = 'active' order by start_time desc limit ?"
    )
    with closing(sqlite3.connect(f"file:{main / 'mlflow.db'}?mode=ro", uri=True)) as database:
        return [(run, str(experiment)) for run, experiment in database.execute(query, (MOST,))]


def comparison(runs: list[tuple[str, str]], port: int) -> str:
    """Address of MLflow's page that compares these runs, the oldest first."""
    ids, experiments = [run for run, _ in reversed(runs)], sorted({experiment for _, experiment in runs})
    return f"http://127.0.0.1:{port}/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(experiments))}"


def serve(main: Path, port: int) -> int:
    """Become `mlflow ui` over the checkout's own database, reachable from this machine only; returns 1 if there is none."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        log.error("runs go to %s; open that, or unset MLFLOW_TRACKING_URI to see local ones", shown(destination(main)))
        return 1
    quiet()
    create_database(main)
    if runs := variants(main):
        log.info("variants side by side: %s", comparison(runs, port))
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven more processes, for features that nobody here uses
    os.chdir(main)
    where = ["--backend-store-uri", local_uri(main), "--default-artifact-root", (main / "mlartifacts").as_uri()]
    how = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where, *how])
