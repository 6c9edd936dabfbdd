"""Pull the machine from under the pipeline again and again, and hold what comes out against an undisturbed run.

`python -m tests.kills [KILLS] [SEED]` shows the log. Kills are aimed: each waits until a stage has used a seeded part of the
processor time that it takes undisturbed, and ends every process of the clone with SIGKILL. The targets are dealt over the ways of
running, so that 20 kills meet each of the ten stages twice. Then the same command is repeated to its end. Outs and `dvc.lock`
must be those of the undisturbed run, byte for byte.
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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.clones import clone, environment, sh

STEPS = ("pretrain.steps=40", "finetune_decoder.steps=40", "dit.steps=60", "evaluate.metric_network.steps=60")
WAIT = "while dvc queue status | grep -qE 'Queued|Running'; do sleep 1; done"
MODES = ("repro", "exp run", "exp run --temp", "queue")
PATIENCE = 600.0  # seconds until a stage must have begun
AGAIN = "a second fresh clone"


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


def start(folder: Path, mode: str) -> subprocess.Popen[bytes]:
    """Begin that command, with nothing to say."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(
        run(folder, mode), cwd=folder, env=environment(), stdout=silent, stderr=silent, start_new_session=True
    )


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that works in a clone or was started for it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(f"{folder}/" in f"{part}/" for part in (process.cwd(), *process.cmdline())):
                found.append(process)
    return [process for process in found if process.pid != psutil.Process().pid]


def stages(found: Sequence[psutil.Process]) -> dict[str, float]:
    """The stages that some of these processes are at, each with the seconds of processor it has used."""
    used: dict[str, float] = {}
    for process in found:
        with contextlib.suppress(psutil.Error):
            for part in process.cmdline():
                if re.fullmatch(r"stages\.\w+", part):
                    times = process.cpu_times()
                    used[part[7:]] = used.get(part[7:], 0.0) + times.user + times.system
    return used


def kill_all(folder: Path) -> str:
    """Kill everything in a clone, until nothing is left; the stage that was at work, and the step of its newest checkpoint."""
    hit: set[str] = set()
    empty = 0
    while empty < 2:  # who ends during a look may have started a child that the look did not see
        found = processes(folder)
        empty = 0 if found else empty + 1
        hit |= stages(found).keys()
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)
    told = []
    for stage in sorted(hit):
        steps = [int(path.name[5:]) for path in (folder / "runs" / stage).glob("*/checkpoints/step-*")]
        told.append(f"{stage} (step {max(steps)} saved)" if steps else stage)
    return ", ".join(told) or "between stages"


def appetites(folder: Path) -> dict[str, float]:
    """Run the pipeline undisturbed; the seconds of processor that each stage takes, in the order they run."""
    process = start(folder, "repro")
    most: dict[str, float] = {}
    while process.poll() is None:
        for stage, used in stages(processes(folder)).items():
            most[stage] = max(used, most.get(stage, 0.0))
        time.sleep(0.1)
    assert process.returncode == 0, f"`dvc repro` in {folder} ended with {process.returncode}"
    return most


def repair(folder: Path, mode: str) -> None:
    """What the documents tell a user to do after a kill."""
    if mode == "exp run":
        sh(folder, "git", "symbolic-ref", "HEAD", "refs/heads/main")
    if mode == "queue":
        for task in re.findall(r"^(\w+) .* Running", sh(folder, "dvc", "queue", "status"), re.MULTILINE):
            sh(folder, "dvc", "queue", "kill", task, ok=None)
        sh(folder, "dvc", "queue", "remove", "--all", ok=None)


def aim(folder: Path, process: subprocess.Popen[bytes], target: str, seconds: float) -> bool:
    """Wait until a stage has used so many seconds of processor, or has just ended; False if the command ended before."""
    since, seen = time.monotonic(), False
    while process.poll() is None:
        assert time.monotonic() - since < PATIENCE, f"{target} did not begin"
        used = stages(processes(folder)).get(target)
        if (used is None and seen) or (used is not None and used >= seconds):
            return True
        seen = used is not None
        time.sleep(0.05)
    return False


def disturbed(folder: Path, mode: str, targets: Mapping[str, float]) -> Iterator[str]:
    """Run with a kill in each of these stages, at so many seconds of processor, then to the end; a line for each kill."""
    for number, (target, seconds) in enumerate(targets.items()):
        process = start(folder, mode)
        reached = aim(folder, process, target, seconds)
        hit = kill_all(folder)
        process.wait()
        repair(folder, mode)
        yield f"{mode}: kill {number + 1}, {seconds:.1f} s into {target}: " + (f"in {hit}" if reached else "had ended")
    sh(folder, *run(folder, mode))
    if mode != "repro":
        repair(folder, "exp run")
        sh(folder, "dvc", "exp", "apply", "killed")
    kill_all(folder)


def deal(names: Sequence[str], kills: Mapping[str, int], rng: random.Random) -> dict[str, list[str]]:
    """Stages for the kills of each mode, in the order they run: all ten are dealt before any is dealt again."""
    pile: list[str] = []
    hands: dict[str, list[str]] = {}
    for mode, number in kills.items():
        assert number <= len(names), f"{mode}: at most one kill of each of {len(names)} stages"
        hand: list[str] = []
        while len(hand) < number:
            pile = pile or rng.sample(list(names), len(names))
            fresh = next((name for name in pile if name not in hand), None)
            if fresh is None:
                pile += rng.sample(list(names), len(names))
                continue
            pile.remove(fresh)
            hand.append(fresh)
        hands[mode] = sorted(hand, key=list(names).index)
    return hands


def report(kills: Mapping[str, int], seed: int, second: bool = False) -> Iterator[str]:
    """Compare each mode, killed as often as it says, with the undisturbed run; the log.

    Args:
        second: also compare two clones that nobody disturbs.

    Raises:
        AssertionError: a sum differs.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as base:
        # All at once, so that an edit of the working tree meanwhile reaches none.
        names = ("undisturbed", *([AGAIN] if second else []), *kills)
        folders = {name: clone(Path(base).resolve() / re.sub(r"\W+", "_", name), *STEPS) for name in names}
        takes = appetites(folders["undisturbed"])
        expected = outcome(folders["undisturbed"])
        yield from (f"undisturbed: {value[:16]} {name}" for name, value in expected.items())
        if second:
            sh(folders[AGAIN], "dvc", "repro")
            assert outcome(folders[AGAIN]) == expected, f"{AGAIN} ended in other bytes"
            yield f"{AGAIN}: all {len(expected)} sums are equal, dvc.lock is {outcome(folders[AGAIN])['dvc.lock'][:16]}"
        met: Counter[str] = Counter()
        for mode, hand in deal(list(takes), kills, rng).items():
            for line in disturbed(folders[mode], mode, {stage: rng.uniform(0.05, 0.8) * takes[stage] for stage in hand}):
                met.update(stage for stage in takes if re.search(rf": in .*\b{stage}\b", line))
                yield line
            assert outcome(folders[mode]) == expected, f"{mode} ended in other bytes"
            yield f"{mode}: ended, all {len(expected)} sums are equal, dvc.lock is {expected['dvc.lock'][:16]}"
        yield "kills that met a stage: " + ", ".join(f"{stage} {met[stage]}" for stage in takes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("kills", nargs="?", type=int, default=5, help="of each way of running")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    chosen = parser.parse_args()
    for line in report(dict.fromkeys(MODES, chosen.kills), chosen.seed, second=True):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
