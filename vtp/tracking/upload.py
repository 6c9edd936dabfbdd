"""From the spool to MLflow: a process of its own, which may fail, wait or be killed without any training noticing.

How far a file was uploaded is noted after it was. Records are sent with the time they were made at, and MLflow stores a point
with equal name, step, time and value once; so whatever was sent twice, because a process died before it could note its position,
is there once. Delete the `.pos` files to upload anew.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from vtp.tracking.database import forget, local_uri, locked, whole
from vtp.tracking.runs import Point, Runs, destination, reason, shown
from vtp.tracking.spool import Record, Spool, spool_folder

log = logging.getLogger(__name__)

POLL = 2.0  # seconds between two looks at the spool
PATIENCE = 7  # looks without a run in progress before the uploader ends; the next stage of a pipeline begins within them
LONGEST_WAIT = 60.0  # seconds between two attempts at a server that does not answer, at most

# What MLflow's errors are called when a server or a database does not answer.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class Unreachable(Exception):
    """MLflow did not answer, is not there, or refuses everything: nothing was lost, and another attempt may succeed."""


class Absent(Unreachable):
    """MLflow is not installed."""


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
