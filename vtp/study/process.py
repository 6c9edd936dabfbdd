"""The programs that do a study's work, watched until they end; and how a piece of that work can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
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

    numbers: dict[str, Any]
    outs: Mapping[str, Path]


class Runner(Protocol):
    """What runs the stages of variants."""

    def open(self) -> None:
        """Get ready; once for a study.

        Raises:
            ValueError: it cannot work here.
        """

    def run(self, cell: Cell) -> Outcome:
        """Run what has not been run before of a variant. Several threads may call it, for a variant each.

        Raises:
            Failure: a stage ended badly; what was done until then is kept.
            Stopped: the running stage was asked to stop.
        """

    def stop(self) -> None:
        """Ask everything that runs to save and stop, and start nothing more."""

    def close(self) -> None:
        """Nothing runs any more, and nothing will."""


class Running(Protocol):
    """A program that was started, with whatever it starts in a process group of its own: Ctrl-C reaches the study alone."""

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""

    def wait(self) -> int:
        """Until it has ended: its exit status, or the negated number of the signal that ended it."""


Start = Callable[[Path], Running]
"""Starts a program whose output is appended to a file."""


def command(words: Sequence[str], folder: Path) -> Start:
    """What starts a command in a folder."""

    def start(log: Path) -> Running:
        with log.open("a") as file:
            return subprocess.Popen(
                words, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    return start


class Programs:
    """The programs that a study has running, one for each variant at work; threads start them and wait."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._running: set[Running] = set()
        self._stopping = False

    def run(self, start: Start, log: Path, title: str) -> tuple[int, str]:
        """Run a program, its output appended to `log` under `title`: its exit status and the last line it said.

        Raises:
            Stopped: `stop` was called before it came to its end.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"\n== {title}\n")
            file.flush()
            begin = file.tell()
        with self._mutex:
            if self._stopping:
                raise Stopped
            process = start(log)
            self._running.add(process)
        status = process.wait()
        with self._mutex:
            self._running.remove(process)
        if status and self._stopping:
            raise Stopped
        with log.open("rb") as out:
            out.seek(begin)
            lines = [line.strip() for line in out.read().decode(errors="replace").splitlines() if line.strip()]
        return status, lines[-1] if lines else ""

    def stop(self) -> None:
        """Ask all programs, and what they have started, to save and stop; those who wait for them see them end."""
        with self._mutex:
            self._stopping = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGTERM)
