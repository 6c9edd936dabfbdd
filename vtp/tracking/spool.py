"""Files of records on their way from a training to MLflow, below `<main>/runs/spool`: written by the one, read by the other.

A spool file is called `<stage>-<key>-<n>.jsonl`. Each line holds `kind`, `key`, `value`, `step` and `ts` (milliseconds since
1970); the first line, of kind `open`, says which run the rest belongs to, the last one, of kind `end`, how it ended. The writer
holds a lock on the file as long as it lives, which is how the reader tells a running training from a killed one. A neighbour,
`.pos`, says how far the file was uploaded, and where to.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

READ = 1 << 18  # bytes of a spool file that are read, and uploaded, at once

Record = Mapping[str, Any]
"""A line of a spool file."""


def spool_folder(main: Path) -> Path:
    """Where the spool files of a checkout lie."""
    return main / "runs" / "spool"


def create(main: Path, stem: str) -> tuple[Path, BinaryIO]:
    """The next free `<stem>-<n>.jsonl`, created and locked by this process."""
    folder = spool_folder(main)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / f"{stem}-{number:04d}.jsonl"
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError:
            number += 1
            continue
        fcntl.flock(file, fcntl.LOCK_EX)
        return path, file


@dataclass
class Position:
    """How far a spool file is at `to`: `offset` bytes, the last record of time `ts` (ms); its `status` once the end was seen."""

    to: str
    offset: int = 0
    ts: int = 0
    status: str = ""
    done: bool = False


class Spool:
    """One spool file as its reader sees it."""

    def __init__(self, path: Path, to: str) -> None:
        self.path, self._pos_path = path, path.with_suffix(".pos")
        self.elsewhere = False
        self.position = Position(to)
        try:
            noted = Position(**json.loads(self._pos_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return
        if noted.to == to:
            self.position = noted
        else:
            self.elsewhere = noted.done

    @property
    def series(self) -> str:
        """Stage and key: what the spool files of one run have in common."""
        return self.path.stem.rpartition("-")[0]

    def pending(self) -> bool:
        """True unless everything was uploaded."""
        return not self.position.done or self.path.stat().st_size > self.position.offset

    def alive(self) -> bool:
        """True while its writer lives."""
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def about(self) -> Record | None:
        """The first record, which says what run this is; None if its writer did not get that far."""
        with self.path.open("rb") as file:
            records = _parse(file.readlines(1))
        return records[0]["value"] if records and records[0]["kind"] == "open" else None

    def read(self) -> tuple[list[Record], int]:
        """The next whole lines, and the offset after them."""
        with self.path.open("rb") as file:
            file.seek(self.position.offset)
            lines = [line for line in file.readlines(READ) if line.endswith(b"\n")]
        return _parse(lines), self.position.offset + sum(map(len, lines))

    def note(self) -> None:
        """Write the position down."""
        temporary = self._pos_path.with_suffix(".pos.new")
        temporary.write_text(json.dumps(asdict(self.position)))
        os.replace(temporary, self._pos_path)


def _parse(lines: list[bytes]) -> list[Record]:
    """Records of whole lines; what a full disk cut is left out."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            if line.strip():
                log.warning("left out a broken line of a spool file: %r", line[:80])
            continue
        records.append(record)
    return records
