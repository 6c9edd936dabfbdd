"""Modules that begin in a copy of a program: as `python -m` would run them, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for
from vtp.study.starter import Starter

SHOWS = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "main": __name__, "spec": sys.modules["__main__"].__spec__.name, "here": os.getcwd(), "path": sys.path,
    "stdin": sys.stdin.read(), "share": os.environ.get("SHARE"), "alone": os.getpgrp() == os.getpid(),
    "loaded": sorted(name for name in sys.modules if name.partition(".")[0] in ("colorsys", "vtp", "stages")),
}))
"""


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "log").write_text("before\n")
    return tmp_path


@pytest.fixture
def starter(place):
    made = Starter(place, {"SHARE": "2"}, ("colorsys", "there.is.none"))
    yield made
    made.close()


def run(starter: Starter, place: Path, code: str, name: str = "some") -> tuple[int, str]:
    """The exit status of a module, and what it said."""
    (place / "stages" / f"{name}.py").write_text(code)
    begin = len((place / "log").read_text())
    status = starter.start(f"stages.{name}", place / "log").wait()
    return status, (place / "log").read_text()[begin:]


def test_a_module_finds_what_it_would_find_alone(starter, place):
    status, said = run(starter, place, SHOWS)
    alone = subprocess.run(
        [sys.executable, "-m", "stages.some"],
        cwd=place,
        env=os.environ | {"SHARE": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert status == alone.returncode == 0
    assert said.replace('"colorsys", ', "") == alone.stdout
    assert '"colorsys"' in said  # was imported before
    assert '"vtp"' not in said


@pytest.mark.parametrize(
    "code",
    [
        "print('fine')",
        "import sys; print('a'); sys.exit(65)",
        "import sys; sys.exit('first: the disk is full.')",
        "import sys; sys.exit()",
        "import sys; sys.exit(0)",
        "raise ValueError('odd')",
        "raise BrokenPipeError",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'last')",
        "import threading; threading.Timer(0.3, print, ['beside']).start()",
        "import sys; print('no end of line', end=''); sys.stderr.write('loud')",
    ],
)
def test_it_ends_as_it_would_alone(starter, place, code):
    status, said = run(starter, place, code)
    alone = subprocess.run([sys.executable, "-m", "stages.some"], cwd=place, capture_output=True, text=True)
    assert status == alone.returncode
    for stream in (alone.stdout, alone.stderr.strip().rpartition("\n")[2]):
        assert stream in said
    assert run(starter, place, "print('next')", "other") == (0, "next\n")


@pytest.mark.parametrize(
    ("trial", "ahead"),
    [
        ("import colorsys", True),
        ("assert 'colorsys' not in __import__('sys').modules", False),
        ("raise SystemExit(0)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", False),
    ],
)
def test_nothing_is_imported_ahead_of_what_could_not_be_done_then(place, trial, ahead):
    with contextlib.closing(Starter(place, {}, ("colorsys",), trial)) as starter:
        for _ in range(2):
            assert run(starter, place, "import sys; print('colorsys' in sys.modules)") == (0, f"{ahead}\n")


def test_it_may_use_processes_of_its_own(starter, place):
    code = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

if __name__ == "__main__":
    for way in ("fork", "spawn", "forkserver"):
        with ProcessPoolExecutor(1, mp_context=get_context(way)) as pool:
            print(pool.submit(abs, -3).result())
"""
    assert run(starter, place, code) == (0, "3\n3\n3\n")


def test_a_signal_to_its_group_reaches_what_it_started(starter, place):
    (place / "stages" / "slow.py").write_text(
        "import subprocess, pathlib\nchild = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path('child').write_text(str(child.pid))\nchild.wait()"
    )
    running = starter.start("stages.slow", place / "log")
    wait_for(lambda: (place / "child").exists() and (place / "child").read_text())
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait() == -signal.SIGTERM
    wait_for(lambda: not alive(int((place / "child").read_text())))


def test_a_starter_that_was_killed_is_started_again(starter, place):
    assert run(starter, place, "print('one')") == (0, "one\n")
    program = starter.ready()
    program.kill()
    program.wait()
    assert run(starter, place, "print('two')", "other") == (0, "two\n")  # the first is known by its compiled file


@pytest.mark.parametrize("busy", [True, False])
def test_it_ends_with_whoever_started_it(place, busy):
    (place / "stages" / "slow.py").write_text("import time, pathlib; time.sleep(1); pathlib.Path('saved').touch()")
    code = f"""
import sys, time
from pathlib import Path
from vtp.study.starter import Starter

starter = Starter(Path({str(place)!r}), {{}}, ())
starter.ready()
{"starter.start('stages.slow', Path('log'))" if busy else ""}
Path("numbers").write_text(str(starter.ready().pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=place, env=os.environ | {"PYTHONPATH": os.getcwd()})
    wait_for(lambda: (place / "numbers").exists() and (place / "numbers").read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(int((place / "numbers").read_text())))
    assert (place / "saved").exists() == busy  # what ran came to its end


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and whose end nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
