"""MLflow's pages over the checkout's own database, and the address that shows its variants side by side."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
import webbrowser
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from vtp.tracking.database import create_database, local_uri
from vtp.tracking.runs import destination, quiet, shown
from vtp.tracking.studies import PREFIX, WHOLE

log = logging.getLogger(__name__)

MOST = 12  # variants that one page still shows side by side


def variants(main: Path) -> list[tuple[str, str]]:
    """The newest parent runs, one for each variant of the pipeline: (run id, experiment id)."""
    query = (
        "select run_uuid, experiment_id from runs join tags using (run_uuid) "
        "where key = 'vtp.variant' and lifecycle_stage = 'active' order by start_time desc limit ?"
    )
    with closing(sqlite3.connect(f"{(main / 'mlflow.db').as_uri()}?mode=ro", uri=True)) as database:
        return [(run, str(experiment)) for run, experiment in database.execute(query, (MOST,))]


def studies(main: Path) -> dict[str, list[tuple[str, str]]]:
    """The runs of every study that are whole, by the name of its experiment, the first entered last; each as in `variants`."""
    query = (
        "select experiments.name, run_uuid, runs.experiment_id from runs join experiments using (experiment_id) "
        "join tags using (run_uuid) join params using (run_uuid) where experiments.name like ? and tags.key = ? "
        "and params.key = 'objective' and runs.lifecycle_stage = 'active' order by start_time desc"
    )
    found: dict[str, list[tuple[str, str]]] = {}
    with closing(sqlite3.connect(f"{(main / 'mlflow.db').as_uri()}?mode=ro", uri=True)) as database:
        for name, run, experiment in database.execute(query, (f"{PREFIX}%", WHOLE)):
            found.setdefault(name, []).append((run, str(experiment)))
    return found


def comparison(runs: list[tuple[str, str]], port: int) -> str:
    """Address of MLflow's page that compares these runs, the oldest first."""
    ids, experiments = [run for run, _ in reversed(runs)], sorted({experiment for _, experiment in runs})
    return f"http://127.0.0.1:{port}/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(experiments))}"


def serve(main: Path, port: int) -> int:
    """Become `mlflow ui` over the checkout's own database, reachable from this machine only, and open the page that compares.

    Returns 1, after one line, where there is nothing to show or the port is taken. Without a display the address is only told.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        log.error("runs go to %s; open that, or unset MLFLOW_TRACKING_URI to see local ones", shown(destination(main)))
        return 1
    if _answers(port):
        log.error("port %d is taken, perhaps by this very page; python -m vtp.tracking ui --port %d", port, port + 1)
        return 1
    quiet()
    try:
        create_database(main)
        found = {f"{len(runs)} variants": runs} if (runs := variants(main)) else {}
        found |= {f"{name}, {len(runs)} runs": runs for name, runs in studies(main).items()}
    except (OSError, sqlite3.Error) as error:
        log.error("%s: %s", main / "mlflow.db", error)
        return 1
    pages = {f"{name} side by side": comparison(runs, port) for name, runs in found.items()}
    pages = pages or {"no runs yet": f"http://127.0.0.1:{port}"}
    for name, address in pages.items():
        log.info("%s: %s", name, address)
    if _display():
        subprocess.Popen([sys.executable, "-m", "vtp.tracking.ui", next(iter(pages.values())), str(port)], start_new_session=True)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven more processes, for features that nobody here uses
    os.chdir(main)
    where = ["--backend-store-uri", local_uri(main), "--default-artifact-root", (main / "mlartifacts").as_uri()]
    how = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where, *how])


def open_when_up(address: str, port: int) -> None:
    """Show `address` in the user's browser as soon as something answers at the port; give up after a minute."""
    for _ in range(120):
        if _answers(port):
            webbrowser.open(address)
            return
        time.sleep(0.5)


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    open_when_up(sys.argv[1], int(sys.argv[2]))
