"""Runs in MLflow: found or created, and what is said of them.

One parent run per variant of the pipeline carries all parameters and all final metrics in one row; one child run per (stage,
key) carries curves and pictures. MLflow is imported here and in `vtp.tracking.database` only, and only once there is something
to say.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtp.tracking.database import EXPERIMENT, create_database, local_uri
from vtp.tracking.spool import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

log = logging.getLogger(__name__)

Entry = TypeVar("Entry", "Metric", "Param")
Point = tuple[str, float, int, int]
"""Name, value, time in ms, step."""

BATCH = 1000  # metrics that MLflow takes in one call
PARAM_BATCH = 100  # parameters that MLflow takes in one call
THUMBNAIL = 256  # longer side of the small copy that MLflow's pages show, in pixels


def destination(main: Path) -> str:
    """Where runs go: the server that MLFLOW_TRACKING_URI names, or else the checkout's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_uri(main)


def shown(text: str) -> str:
    """`text` without the user names and passwords that addresses in it may carry."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def reason(error: Exception) -> str:
    """The line of an error's text that says most: SQLAlchemy puts a database's own words below remarks of its own."""
    lines = shown(str(error)).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if line.startswith("(sqlite3.")), lines[0])


def safe_name(text: str) -> str:
    """A name with only those characters that MLflow allows in one."""
    return re.sub(r"[^/\w.\- ]", "_", text)


def quiet() -> None:
    """Keep MLflow from reporting home, and its log from telling of every migration and every attempt."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a page for each error, which is raised as well
    logging.getLogger("urllib3").setLevel(logging.ERROR)


class Runs:
    """Runs of an experiment in MLflow, found by their tags or created."""

    def __init__(self, main: Path, name: str = EXPERIMENT) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        quiet()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            create_database(main)
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(tracking_uri=destination(main))
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:  # a server, which knows best where its artifacts go, or a database that somebody else made
            place = None if server else (main / "mlartifacts").as_uri()
            self.experiment = self.client.create_experiment(name, artifact_location=place)
        else:
            self.experiment = experiment.experiment_id
        self._known: dict[tuple[str, str, str], tuple[str, str | None]] = {}

    def open(self, about: Record, ts: int) -> tuple[str, str | None]:
        """Ids of the parent run and of the stage's run, which is None for what concerns the pipeline alone."""
        variant, name = about["variant"], about["run_name"]
        names = (variant, about["stage"], about["key"])
        if names not in self._known:
            tags = {key: str(value) for key, value in about["tags"].items()}
            parent = self._find({"vtp.variant": variant}) or self.create(name or variant[:8], {"vtp.variant": variant}, ts)
            self._label(parent, tags | ({"mlflow.runName": name} if name else {}))
            self.parameters(parent, about["parameters"])
            child = None
            if about["stage"]:
                own = {"vtp.stage": about["stage"], "vtp.key": about["key"]}
                child = self._find(own) or self.create(about["stage"], own | {"mlflow.parentRunId": parent}, ts)
                self._label(child, tags)
            self._known[names] = parent, child
        return self._known[names]

    def _find(self, tags: Mapping[str, str]) -> str | None:
        found = self.client.search_runs([self.experiment], _tagged(tags), max_results=1, order_by=["attributes.start_time ASC"])
        return found[0].info.run_id if found else None

    def all(self, tags: Mapping[str, str]) -> list[Run]:
        """Every run with these tags."""
        found, token = list[Any](), None
        while True:
            page = self.client.search_runs([self.experiment], _tagged(tags), page_token=token)
            found += page
            if not (token := page.token):
                return found

    def create(self, name: str, tags: Mapping[str, str], ts: int) -> str:
        """A new run that begins at `ts`, in ms: its id."""
        return str(self.client.create_run(self.experiment, start_time=ts, tags=dict(tags), run_name=name).info.run_id)

    def _label(self, run: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self.client.set_tag(run, key, value)

    def parameters(self, run: str, values: Mapping[str, Any]) -> None:
        """Store parameters that the run has not yet; MLflow refuses to change one, so the first value stays."""
        from mlflow.entities import Param

        texts = {safe_name(key): value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        there = self.client.get_run(run).data.params if texts else {}
        for key in texts.keys() & there.keys():
            if texts[key] != there[key]:
                log.info("run %s keeps %s=%s, though a later start had %s", run, key, there[key], texts[key])
        new = [Param(key, text) for key, text in texts.items() if key not in there]
        for start in range(0, len(new), PARAM_BATCH):
            self._store(lambda part: self.client.log_batch(run, params=part), new[start : start + PARAM_BATCH])

    def metrics(self, run: str, points: list[Point]) -> None:
        """Store points of curves."""
        from mlflow.entities import Metric

        metrics = [Metric(safe_name(name), value, ts, step) for name, value, ts, step in points]
        for start in range(0, len(metrics), BATCH):
            self._store(lambda part: self.client.log_batch(run, metrics=part), metrics[start : start + BATCH])

    def _store(self, send: Callable[[list[Entry]], object], entries: list[Entry]) -> None:
        """Send a batch; if MLflow finds fault with an entry, send the others."""
        from mlflow.exceptions import MlflowException

        try:
            send(entries)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(entries) == 1:
                log.warning("MLflow does not take %s: %s", entries[0].key, shown(str(error)))
                return
            middle = len(entries) // 2
            self._store(send, entries[:middle])
            self._store(send, entries[middle:])

    def picture(self, run: str, path: Path) -> None:
        """Store a PNG and its thumbnail, under the names that MLflow's pages look for."""
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / f"{path.stem}+compressed.webp"
            try:
                with Image.open(path) as image:
                    image.thumbnail((THUMBNAIL, THUMBNAIL))
                    image.save(small)
            except OSError as error:
                log.warning("%s was not uploaded: %s", path, error)
                return
            self.client.log_artifact(run, str(path), "images")
            self.client.log_artifact(run, str(small), "images")
        self.client.set_tag(run, "mlflow.loggedImages", "True")

    def status(self, runs: tuple[str, str | None], status: str, ts: int) -> None:
        """Say of parent and child that they run, or how and when they ended."""
        for run in filter(None, runs):
            if status == "RUNNING":
                self.client.update_run(run, status=status)
            else:
                self.client.set_terminated(run, status=status, end_time=ts)


def _tagged(tags: Mapping[str, str]) -> str:
    """MLflow's words for runs with these tags."""
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
