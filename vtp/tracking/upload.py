"""From the spool to MLflow: a process of its own, which may fail, wait or be killed without any training noticing.

One parent run per variant of the pipeline carries all parameters and all final metrics in one row; one child run per (stage,
key) carries curves and pictures. A spool file has a neighbour `.pos` that says how far it was uploaded, and where to. Records
are sent with the time they were made at, and MLflow stores a point with equal name, step, time and value once; so whatever was
sent twice, because a process died before it could note its position, is there once. Delete the `.pos` files to upload anew.

MLflow is imported here and in `vtp.tracking.database` only, and only once there is something to upload.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtp.tracking.database import EXPERIMENT, create_database, forget, local_uri, locked, whole
from vtp.tracking.track import Record, Spool, spool_folder

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

POLL = 2.0  # seconds between two looks at the spool
PATIENCE = 7  # looks without a run in progress before the uploader ends; the next stage of a pipeline begins within them
LONGEST_WAIT = 60.0  # seconds between two attempts at a server that does not answer, at most

# What MLflow's errors are called when a server or a database does not answer.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class Unreachable(Exception):
    """MLflow did not answer, is not there, or refuses everything: nothing was lost, and another attempt may succeed."""


class Absent(Unreachable):
    """MLflow is not installed."""


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


class Uploader:
    """Brings spool files to one destination."""

    def __init__(self, main: Path) -> None:
        self.main, self.to = main, shown(destination(main))
        self.alive = False  # a run was in progress at the last round
        self.sent = 0  # records
        self.refused: set[Path] = set()  # files that MLflow minds, while it takes others
        self._spools: dict[Path, Spool] = {}
        self._runs: Runs | None = None
        if self.to == local_uri(main) and not whole(main):
            forget(main)

    def round(self, everything: bool = False) -> None:
        """Upload what is new.

        Args:
            everything: also runs that ended and are at another destination.

        Raises:
            Unreachable: MLflow did not answer.
        """
        paths = sorted(spool_folder(self.main).glob("*.jsonl"))
        for path in paths:
            if path not in self._spools:
                self._spools[path] = Spool(path, self.to)
        newest = {self._spools[path].series: self._spools[path] for path in paths}
        # In the order they were last written in, so that the parent run ends as the last of its stages did. Whether a writer
        # lives is asked before reading: what one that is dead by now wrote is all there.
        spools = [self._spools[path] for path in sorted(paths, key=lambda path: path.stat().st_mtime)]
        pending = [(spool, spool.alive()) for spool in spools if spool.pending() and (everything or not spool.elsewhere)]
        self.alive = any(living for _, living in pending)
        for spool, living in pending:
            try:
                self._upload(spool, living, newest=newest[spool.series] is spool)
                self.refused.discard(spool.path)
            except Exception as error:
                self._judge(spool, error)

    def _judge(self, spool: Spool, error: Exception) -> None:
        """Give up the round if MLflow is not there; go on with the other files if it minds this one only."""
        if isinstance(error, ImportError):
            raise Absent(
                f"no MLflow here ({reason(error)}); `python -m vtp.tracking replay` uploads the spool where there is one"
            )
        if self._runs is None or isinstance(error, OSError) or getattr(error, "error_code", None) in PASSING:
            raise Unreachable(f"{self.to}: {reason(error)}") from error
        if spool.path not in self.refused:
            log.warning("%s stays in the spool (%s: %s)", spool.path.name, type(error).__name__, reason(error))
        self.refused.add(spool.path)

    def _upload(self, spool: Spool, living: bool, newest: bool) -> None:
        about, position = spool.about(), spool.position
        if about is None:
            return
        records, offset = spool.read()
        if offset == position.offset and living:
            return
        if self._runs is None:
            self._runs = Runs(self.main)
        runs = self._runs.open(about, records[0]["ts"] if records else position.ts)
        if newest and position.offset == 0:
            self._runs.status(runs, "RUNNING", 0)
        while offset > position.offset:
            self._send(spool, runs, records, about["stage"])
            position.offset = offset
            spool.note()
            records, offset = spool.read()
        if not living:
            ending = position.status or "KILLED"
            if newest:  # an earlier one was interrupted, and the run went on
                self._runs.status(runs, ending, position.ts)
            position.done = True
            spool.note()
            log.info("%s is uploaded to %s: %s", spool.path.name, self.to, ending)

    def _send(self, spool: Spool, runs: tuple[str, str | None], records: list[Record], stage: str) -> None:
        assert self._runs is not None
        parent, child = runs
        curves: list[Point] = []
        finals: list[Point] = []
        parameters: dict[str, Any] = {}
        for record in records:
            key, value, step, ts = record["key"], record["value"], record["step"], record["ts"]
            spool.position.ts = ts
            match record["kind"]:
                case "scalar":
                    curves.append((key, value, ts, step))
                case "final":
                    curves += [(f"final/{key}", value, ts, step)] if child else []
                    finals.append((f"{stage}/{key}" if stage else key, value, ts, step))
                case "parameter":
                    parameters[key] = value
                case "picture" if child:
                    self._runs.picture(child, spool.path.parent / value)
                case "end":
                    spool.position.status = value
        if child:
            self._runs.parameters(child, parameters)
            self._runs.metrics(child, curves)
        self._runs.metrics(parent, finals)
        self.sent += len(records)


def follow(main: Path) -> int:
    """Upload while runs are in progress, and end a few seconds after the last one; returns 1 if something stays in the spool.

    One process of a checkout does so. Others wait for its end, since it may have looked for the last time when theirs began; they
    leave at once if it had not.
    """
    os.nice(10)  # a training on the same cores comes first
    with locked(spool_folder(main) / "upload.lock"):
        uploader = Uploader(main)
        idle, wait = 0, POLL
        while idle < PATIENCE:
            try:
                uploader.round()
                wait = POLL
                if not (uploader.alive or uploader.sent):
                    break  # the one before this left nothing to do
            except Absent as error:
                log.warning("%s", error)
                return 1
            except Unreachable as error:
                log.warning("nothing uploaded: %s", error)
                wait = min(2 * wait, LONGEST_WAIT)
            idle = 0 if uploader.alive else idle + 1
            time.sleep(wait if uploader.alive else POLL)
    return 1 if uploader.refused or wait > POLL else 0


def replay(main: Path) -> int:
    """Upload everything that is not at the present destination yet, and say what was done; returns 1 if something stays."""
    with locked(spool_folder(main) / "upload.lock", wait=False) as got:
        if not got:
            log.warning("another process is uploading, see %s; nothing done", spool_folder(main) / "upload.log")
            return 1
        uploader = Uploader(main)
        try:
            uploader.round(everything=True)
        except Unreachable as error:
            log.error("nothing more uploaded: %s", error)
            return 1
        finally:
            log.info("%d records uploaded to %s", uploader.sent, uploader.to)
    return 1 if uploader.refused else 0
