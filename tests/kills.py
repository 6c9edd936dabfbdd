"""Pull the machine from under the pipeline again and again, and hold what comes out against an undisturbed run.

`python -m tests.kills [KILLS] [SEED]` shows the log. Every process of a clone is killed with SIGKILL at seeded random times, in
each way of running it; then the same command is repeated to its end. Outs and `dvc.lock` must be those of the undisturbed run,
byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from tests.clones import clone, environment, sh

STEPS = ("pretrain.steps=12", "finetune_decoder.steps=12", "dit.steps=12", "evaluate.metric_network.steps=12")
WAIT = "while dvc queue status | grep -qE 'Queued|Running'; do sleep 1; done"
MODES = ("repro", "exp run", "exp run --temp", "queue")


def outcome(folder: Path) -> dict[str, str]:
    """sha256 of dvc.lock and of every out's manifest, which holds the sums of its files."""
    files = [folder / "dvc.lock", *sorted((folder / "data").glob("*/manifest.json"))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(folder: Path, mode: str) -> list[str]:
    """The command that runs the pipeline in this way."""
    return {
        "repro": ["dvc", "repro"],
        "exp run": ["dvc", "exp", "run", "-f", "-n", "killed"],
        "exp run --temp": ["dvc", "exp", "run", "-f", "--temp", "-n", "killed"],
        "queue": ["sh", "-c", f"dvc exp run --queue -f -n killed && dvc queue start && {WAIT}"],
    }[mode]


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that works in a clone or was started for it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)) or any(str(folder) in part for part in process.cmdline()):
                found.append(process)
    return [process for process in found if process.pid != psutil.Process().pid]


def kill_all(folder: Path) -> str:
    """Kill everything in a clone; the stages that were at work."""
    stages = set()
    for _ in range(3):  # who was about to start a child has started it now
        for process in processes(folder):
            with contextlib.suppress(psutil.Error):
                stages |= {part for part in process.cmdline() if part.startswith("stages.")}
                process.kill()
        time.sleep(0.05)
    return ", ".join(sorted(stages)) or "between stages"


def repair(folder: Path, mode: str) -> None:
    """What the documents tell a user to do after a kill."""
    if mode == "exp run":
        sh(folder, "git", "symbolic-ref", "HEAD", "refs/heads/main")
    if mode == "queue":
        for task in re.findall(r"^(\w+) .* Running", sh(folder, "dvc", "queue", "status"), re.MULTILINE):
            sh(folder, "dvc", "queue", "kill", task, ok=None)
        sh(folder, "dvc", "queue", "remove", "--all", ok=None)


def disturbed(folder: Path, mode: str, kills: int, rng: random.Random, longest: float) -> Iterator[str]:
    """Run with kills, then to the end; a line for each kill."""
    for number in range(kills):
        delay = rng.uniform(0.5, longest)
        process = subprocess.Popen(
            run(folder, mode),
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        ended = process.poll() is not None
        at = kill_all(folder)
        process.wait()
        repair(folder, mode)
        yield f"{mode}: kill {number + 1} after {delay:.1f} s, " + ("had ended" if ended else f"in {at}")
    sh(folder, *run(folder, mode))
    if mode != "repro":
        repair(folder, "exp run")
        sh(folder, "dvc", "exp", "apply", "killed")
    kill_all(folder)


def report(kills: Mapping[str, int], seed: int, longest: float) -> Iterator[str]:
    """Compare each mode, killed as often as it says, with the undisturbed run; the log.

    Raises:
        AssertionError: a sum differs.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as base:
        # All at once, so that an edit of the working tree meanwhile reaches none.
        folders = {mode: clone(Path(base).resolve() / mode.replace(" ", "_"), *STEPS) for mode in ("undisturbed", *kills)}
        sh(folders["undisturbed"], "dvc", "repro")
        expected = outcome(folders["undisturbed"])
        yield from (f"undisturbed: {value[:16]} {name}" for name, value in expected.items())
        for mode, number in kills.items():
            yield from disturbed(folders[mode], mode, number, rng, longest)
            assert outcome(folders[mode]) == expected, f"{mode} ended in other bytes"
            yield f"{mode}: ended, all {len(expected)} sums are equal"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("kills", nargs="?", type=int, default=5, help="of each way of running")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    chosen = parser.parse_args()
    for line in report(dict.fromkeys(MODES, chosen.kills), chosen.seed, 12.0):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
