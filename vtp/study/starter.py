"""A program that has imported already what all stages need, and becomes one of them whenever it is told to.

On two cores importing torch and its company takes longer than twenty steps of a small model, and a variant has eight stages. So
this file, run as a script, imports once, waits, and forks for every stage; the child is what `python -m stages.<name>` would be.
It imports nothing of this project itself: a stage takes the code of the folder that it runs in.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Started:
    """A module that runs, in a process group of its own.

    Attributes:
        pid: of the process, and of its group.
    """

    pid: int
    told: subprocess.Popen[str]

    def wait(self) -> int:
        """Until it has ended: its exit status, the negated number of the signal that ended it; -9 if the starter is gone."""
        assert self.told.stdout is not None
        return int(self.told.stdout.readline() or -9)


class Starter:
    """Starts modules in a folder, one at a time. It ends with this process, but for a module that runs, which comes to its end.

    Args:
        folder: where modules are looked for, and the working directory.
        environment: variables that they get beside those of this process.
        imports: modules that are there before any of them starts; one that is not installed is left out.
        trial: a statement that a child must be able to execute after these imports. If it cannot, nothing is imported ahead: a
            GPU's driver, say, does not survive a fork once an import has touched it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], imports: Sequence[str], trial: str = "pass") -> None:
        self.folder, self.environment, self.imports, self.trial = folder, environment, imports, trial
        self._program: subprocess.Popen[str] | None = None

    def ready(self) -> subprocess.Popen[str]:
        """Start it if it does not run, and wait until it has imported everything."""
        if self._program is None or self._program.poll() is not None:
            self._program = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), self.trial, *self.imports],
                cwd=self.folder,
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            assert self._program.stdout is not None
            self._program.stdout.readline()
        return self._program

    def start(self, module: str, log: Path) -> Started:
        """Run a module as `python -m` does, what it says appended to `log`.

        Raises:
            OSError: the starter is gone.
        """
        program = self.ready()
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps([module, str(log)]) + "\n")
        program.stdin.flush()
        if not (pid := program.stdout.readline()):
            raise OSError(f"the program that starts {module} was ended")
        return Started(int(pid), program)

    def close(self) -> None:
        """End it; no module is running."""
        if self._program is not None:
            self._program.communicate()
            self._program = None


def serve() -> None:
    """Answer every line of stdin, a module and its log, with the process that became it and, at its end, its exit status."""
    sys.path[0] = os.getcwd()  # was the folder of this file
    file, trial, *imports = sys.argv
    for name in imports:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if imports and not _succeeds(trial):
        os.execv(sys.executable, [sys.executable, file, "pass"])
    gc.collect()
    gc.freeze()  # a child that looks for garbage does not look here, which would copy all of it
    _say("ready")
    for line in sys.stdin:
        module, log = json.loads(line)
        if not (pid := os.fork()):
            _become(module, log)
        with contextlib.suppress(OSError):  # the child has done so itself
            os.setpgid(pid, pid)
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _succeeds(trial: str) -> bool:
    """Whether a child can execute a statement."""
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            exec(trial)
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _say(word: object) -> None:
    try:
        sys.stdout.write(f"{word}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever wanted to know is gone
        os._exit(0)


def _become(module: str, log: str) -> NoReturn:
    """What `python -m` does."""
    os.setpgid(0, 0)
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as the end of every program does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # to take down what was imported would take longer than many a stage


if __name__ == "__main__":
    serve()
