"""The programs that do a study's work, watched until they end; and how a piece of that work can end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
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


class Programs:
    """The programs that a study has running, one for each variant at work; threads start them and wait."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def run(
        self, command: Sequence[str], folder: Path, log: Path, title: str, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a program, its output appended to `log` under `title`: its exit status and the last line it said.

        Args:
            environment: variables that it gets beside those of this process.

        Raises:
            Stopped: `stop` was called before it came to its end.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"\n== {title}\n")
            file.flush()
            start = file.tell()
            with self._mutex:
                if self._stopping:
                    raise Stopped
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=os.environ | (environment or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own, with what it starts: Ctrl-C reaches the study alone
                )
                self._running.add(process)
            status = process.wait()
            with self._mutex:
                self._running.remove(process)
        if status and self._stopping:
            raise Stopped
        with log.open("rb") as file:
            file.seek(start)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return status, lines[-1] if lines else ""

    def stop(self) -> None:
        """Ask all programs, and what they have started, to save and stop; those who wait for them see them end."""
        with self._mutex:
            self._stopping = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGTERM)
