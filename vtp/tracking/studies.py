"""The runs of a study as an experiment of its own in MLflow, made from what was measured and nothing else.

What is in MLflow is brought in line with what is given: a run that is there already stays, one that is new is entered, one that
was measured anew or is gone leaves. A run counts once all of it has arrived; half of one, after a kill, is entered again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtp.artifacts import digest
from vtp.provenance import fingerprint
from vtp.tracking.database import locked
from vtp.tracking.runs import Runs, reason
from vtp.tracking.spool import spool_folder
from vtp.tracking.track import Status, wanted

log = logging.getLogger(__name__)

PREFIX = "study "
"""Before the name of a study in that of its experiment."""
STUDY = "vtp.study"
"""Tag of every run that is entered here."""
WHOLE = "vtp.entry"
"""Tag of one that has arrived: the fingerprint of all that was to be said of it."""


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        name: unique in its study.
        parameters, metrics, tags: what MLflow shows of it.
        files: go with it.
    """

    name: str
    status: Status = "FINISHED"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()

    @property
    def key(self) -> str:
        """Fingerprint of all of it."""
        files = {file.name: digest(file) for file in self.files}
        told = [self.name, self.status, dict(self.parameters), dict(self.metrics), dict(self.tags), files]
        return fingerprint({"entry": told})


def enter(main: Path, study: str, entries: Sequence[Entry]) -> bool:
    """Make the experiment of a study hold these runs and, of those entered here, no others; whether it does now.

    Never raises: what went wrong is one warning. With VTP_TRACKING=off nothing is done.
    """
    if not wanted():
        return False
    try:
        with locked(spool_folder(main) / "studies.lock"):
            runs = Runs(main, f"{PREFIX}{study}")
            missing = {entry.key: entry for entry in entries}
            for run in runs.all({STUDY: study}):
                if missing.pop(run.data.tags.get(WHOLE, ""), None) is None:
                    runs.client.delete_run(run.info.run_id)
            for key, entry in missing.items():
                _add(runs, study, key, entry)
    except Exception as error:  # no MLflow, a server that does not answer, a full disk: a report is written all the same
        log.warning("the study %s is not whole in MLflow (%s); the same command goes on.", study, reason(error))
        return False
    return True


def _add(runs: Runs, study: str, key: str, entry: Entry) -> None:
    now = time.time_ns() // 1_000_000
    run = runs.create(entry.name, {STUDY: study, **entry.tags}, now)
    runs.parameters(run, entry.parameters)
    runs.metrics(run, [(name, value, now, 0) for name, value in entry.metrics.items()])
    for file in entry.files:
        runs.client.log_artifact(run, str(file))
    runs.status((run, None), entry.status, now)
    runs.client.set_tag(run, WHOLE, key)
