"""A program that does one piece of a study's work, watched until it ends; and how such a piece can end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vtp.study.plan import Cell


class Failure(Exception):
    """A variant ended badly; the message is one line, without where on this machine the details are."""

    def __init__(self, message: str, *, diverged: bool) -> None:
        super().__init__(message.partition("  (details: ")[0])
        self.diverged = diverged


class Stopped(Exception):
    """The running stage was asked to save and stop, and did."""


@dataclass(frozen=True)
class Outcome:
    """What a variant left: the `numbers` of all its reports, and the folders of the outs that hold pictures, by stage."""

    numbers: Mapping[str, Any]
    outs: Mapping[str, Path]


class Runner(Protocol):
    """What runs the stages of a variant."""

    def open(self) -> None:
        """Get ready; once for a study.

        Raises:
            ValueError: it cannot work here.
        """

    def run(self, cell: Cell) -> Outcome:
        """Run what has not been run before of a variant.

        Raises:
            Failure: a stage ended badly; what was done until then is kept.
            Stopped: the running stage was asked to stop.
        """


def supervise(command: Sequence[str], folder: Path, log: Path, title: str) -> tuple[int, str]:
    """Run a program, its output appended to `log` under `title`: its exit status and the last line it said.

    The program and what it starts are a process group of their own. Whatever ends the wait (Ctrl-C, a signal) asks that group to
    stop and waits for it to save.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"\n== {title}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return status, lines[-1] if lines else ""
