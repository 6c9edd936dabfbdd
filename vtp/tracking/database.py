"""The checkout's own MLflow database, `<main>/mlflow.db`: made whole or not at all, and made anew where half of one is found.

MLflow creates its tables in dozens of migrations; two processes that do so at once, or one that is killed meanwhile, leave a
database that may never open again. Here it grows under another name, under a lock. Nothing in it is the only copy of anything:
the spool keeps every record, and a new database gets them all.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from vtp.tracking.spool import spool_folder

log = logging.getLogger(__name__)

EXPERIMENT = "vtp"
QUIET = 60.0  # seconds without a change after which nobody is at work any more on a database that is not whole
SIDE_FILES = ("-wal", "-shm", "-journal")  # of SQLite, beside the database


def local_uri(main: Path) -> str:
    """MLflow's address of the checkout's own database."""
    return f"sqlite:///{main / 'mlflow.db'}"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`; yields False, and holds nothing, if another process has it and `wait` is False."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def whole(main: Path) -> bool:
    """Whether there is a database that was once finished: MLflow's last act in making one is to enter an experiment."""
    path = main / "mlflow.db"
    if not path.exists():
        return False
    try:  # not read-only: SQLite first takes back what a killed process did by half
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=1.0)) as database:
            return bool(database.execute("select count(*) from experiments").fetchone()[0])
    except sqlite3.DatabaseError as error:
        odd = ("no such table", "not a database", "malformed")
        return not any(words in str(error) for words in odd)  # locked, say: that passes


def create_database(main: Path) -> None:
    """Make `<main>/mlflow.db` if there is none, or only a part of one, which is moved aside.

    Raises:
        OSError: somebody else may be making one at this moment, without a thought of others; try again in a minute.
    """
    if whole(main):
        return
    final = main / "mlflow.db"
    with locked(spool_folder(main) / "database.lock"):
        if whole(main):
            return
        if final.exists() and time.time() - final.stat().st_mtime < QUIET:
            raise OSError(f"{final} is not whole, but changed less than a minute ago: is another program making it?")
        for leftover in main.glob(".mlflow.db.*"):
            leftover.unlink()
        temporary = main / f".mlflow.db.{os.getpid()}"
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        artifacts = (main / "mlartifacts").as_uri()
        store: Any = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts)
        store.create_experiment(EXPERIMENT, artifact_location=artifacts)
        store.engine.dispose()
        with closing(sqlite3.connect(temporary)) as database, suppress(sqlite3.Error):  # not every file system can
            database.execute("pragma journal_mode=wal")  # readers do not wait for a writer
        _move_aside(final)
        forget(main)
        os.replace(temporary, final)


def _move_aside(path: Path) -> None:
    """Rename a database that is not whole; what SQLite left beside it would spoil the next one of that name."""
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    if path.exists():
        log.warning("%s was never finished or is damaged; it is %s now, and a new one takes its place", path, aside.name)
    for end in ("", *SIDE_FILES):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")


def forget(main: Path) -> None:
    """Let every record in the spool count as not uploaded to the checkout's own database."""
    for note in spool_folder(main).glob("*.pos"):
        with suppress(ValueError, KeyError):
            if json.loads(note.read_text())["to"] != local_uri(main):
                continue
        note.unlink(missing_ok=True)
