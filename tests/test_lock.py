"""Who may work in a folder: one process at a time, and the dead do not count."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_for
from vtp import lock as locks
from vtp.config import ROOT
from vtp.lock import Held, Lock

HOLD = """
import sys
from pathlib import Path
from vtp.lock import Lock
with Lock(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds a lock until its input ends."""
    started = []

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.trap
def test_a_second_process_waits_and_says_for_whom(tmp_path, holder, caplog):
    caplog.set_level("INFO")
    process = holder()
    lock = Lock(tmp_path / "lock")
    assert not lock.free()

    def end_the_holder() -> None:
        wait_for(lambda: "waiting" in caplog.text)
        process.stdin.close()

    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(end_the_holder)
        with lock.held():
            assert process.wait(PATIENCE) == 0
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        ending.result()
    assert f"held by process {process.pid} on {socket.gethostname()}; waiting" in caplog.text
    assert not (tmp_path / "lock").exists()


@pytest.mark.trap
def test_the_lock_of_a_killed_process_is_taken_over_with_a_message(tmp_path, holder, caplog):
    caplog.set_level("INFO")
    process = holder()
    process.kill()
    process.wait()
    lock = Lock(tmp_path / "lock")
    assert lock.free()
    with lock.held():
        pass
    assert "waiting" not in caplog.text
    assert f"taking over {tmp_path / 'lock'} from process {process.pid}" in caplog.text


def test_a_holder_on_another_machine_lives_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    lock = Lock(path)
    assert not lock.free()
    taken = threading.Event()
    waiter = threading.Thread(target=lambda: (lock.acquire(), taken.set()), daemon=True)
    waiter.start()
    assert not taken.wait(0.2)
    long_ago = time.time() - 2 * locks.STALE
    os.utime(path, (long_ago, long_ago))
    assert taken.wait(PATIENCE)
    lock.release()


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_clocks_of_two_machines_may_differ(tmp_path, monkeypatch, ahead):
    """A shared disk dates its files itself."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    assert not Lock(tmp_path / "lock").free()
    long_ago = now() - 2 * locks.STALE
    os.utime(tmp_path / "lock", (long_ago, long_ago))
    assert Lock(tmp_path / "lock").free()


def test_a_machine_that_has_just_made_the_file_gets_to_write_its_name(tmp_path, monkeypatch):
    """Where flock does not reach, another machine may look between the two."""
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: path.write_text(json.dumps({"pid": 1, "host": "elsewhere"})))
    with pytest.raises(Held, match="is held by process 1 on elsewhere"), Lock(path).held(wait=False):
        pass
    monkeypatch.undo()
    path.write_text("")  # its maker was killed there and then
    with Lock(path).held(wait=False):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_who_was_taken_for_dead_does_not_let_go_of_the_lock_of_another(tmp_path):
    path = tmp_path / "lock"
    with Lock(path).held():
        path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    assert Lock(path).holder() == "process 1 on elsewhere"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_told_in_one_line(tmp_path, monkeypatch, number):
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ValueError, match=rf"cannot lock files \({os.strerror(number)}\); mount it so that it can .* runs a link"):
        Lock(tmp_path / "lock").acquire()


def test_the_heart_beats_while_the_lock_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    with Lock(tmp_path / "lock").held():
        for _ in range(2):
            os.utime(tmp_path / "lock", (0, 0))
            wait_for(lambda: (tmp_path / "lock").stat().st_mtime > 0)


@pytest.mark.trap
def test_a_rank_that_outlives_its_launcher_keeps_others_out(tmp_path):
    """The launcher is what the holder became; killed with SIGKILL, it leaves the process it started at work."""
    rank = (
        "import sys; from pathlib import Path; from vtp.lock import Lock\n"
        "with Lock(Path(sys.argv[1])).joined(): print('joined', flush=True); sys.stdin.read()"
    )
    launcher = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"
    first = (
        "import os, sys; from pathlib import Path; from vtp.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1])); lock.acquire(); lock.hand_over()\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[2], sys.argv[3], sys.argv[1]])"
    )
    command = [sys.executable, "-c", first, str(tmp_path / "lock"), launcher, rank]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lock = Lock(tmp_path / "lock")
    assert process.stdout.readline() == "joined\n"
    assert not lock.free()
    process.kill()
    process.wait()
    assert not lock.free()
    process.stdin.close()  # the rank ends
    wait_for(lock.free)


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_that_is_somebody_elses_by_now_is_not_joined(tmp_path, holder, there):
    if there:
        holder()
    with pytest.raises(ValueError, match=r"not its launcher's any more"), Lock(tmp_path / "lock").joined():
        pass


def test_of_many_only_one_is_inside(tmp_path):
    code = HOLD.replace(
        'print("held", flush=True)\n    sys.stdin.read()',
        "p = Path(sys.argv[2]); n = int(p.read_text()); time.sleep(0.005); p.write_text(str(n + 1))",
    ).replace("with Lock", "import time, vtp.lock\nvtp.lock.POLL = 0.001\nfor _ in range(20):\n  with Lock")
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", code, str(tmp_path / "lock"), str(counter)]
    for process in [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]:
        assert process.wait() == 0
    assert counter.read_text() == "80"


def test_a_lock_that_vanishes_under_the_look_is_free(tmp_path, monkeypatch):
    """Its holder may let go between two looks at the file."""
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert Lock(tmp_path / "lock").free()
