"""A machine's records measured once more: `python -m benchmarks.again W2 W5 --out new` (without names, all of them).

A record holds the command that it came from. On a machine with several GPUs as many commands run at a time, each on one of them.
What a command says goes to `<out>/logs/`. One that fails or takes too long is told at the end, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch

from benchmarks.measure import RESULTS, machine
from vtp.study.shares import shares

log = logging.getLogger(__name__)


def commands(records: Path, names: list[str]) -> dict[str, list[str]]:
    """The commands of these records, each once although it may have written several, under the first one's name.

    A record without a command (that of the solvers, which needs a finished pipeline) is none that can be made again.

    Raises:
        SystemExit: there is no such record.
    """
    read = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    there = {name: record["command"] for name, record in read.items() if "command" in record}
    if missing := [name for name in names if name not in there]:
        raise SystemExit(f"{records} has no record of {', '.join(missing)}; it has {', '.join(there) or 'none at all'}.")
    found: dict[str, str] = {}
    for name in names or there:
        if there[name] not in found.values():
            found[name] = there[name]
    return {name: shlex.split(command)[1:] for name, command in found.items()}


def run(name: str, arguments: list[str], out: Path, seconds: float, environment: dict[str, str]) -> str:
    """Run a record's command; what went wrong, or nothing."""
    with (out / "logs" / f"{name}.log").open("wb") as file:
        try:
            ended = subprocess.run(
                [sys.executable, *arguments, "--out", str(out)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"took more than {seconds:.0f} s"
    return f"exit status {ended.returncode}, see {file.name}" if ended.returncode else ""


def compare(name: str, before: Path, after: Path) -> str:
    """One line: milliseconds and images/s of a record, and of the new one, the ratio of the first to the second."""
    old, new = (json.loads((folder / f"{name}.json").read_text()) for folder in (before, after))
    text = f"{name}: {old['milliseconds']} ms, now {new['milliseconds']} ms, {old['milliseconds'] / new['milliseconds']:.3f} x"
    return text + (f"; {new['images_per_second']} images/s" if "images_per_second" in new else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of records, as W2")
    parser.add_argument("--machine", default=None, help="whose: a folder of benchmarks/results; this machine's by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="that a command may take")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new records")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    here = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    before, after = RESULTS / (args.machine or here), args.out / here
    todo = commands(before, args.names)
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    at_once = max(1, torch.cuda.device_count())
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for environment in shares(at_once):
        free.put(environment)

    def turn(name: str) -> str:
        environment = free.get()
        try:
            trouble = run(name, todo[name], args.out, args.seconds, environment)
        finally:
            free.put(environment)
        log.info("%s", f"{name}: {trouble}" if trouble else compare(name, before, after))
        return trouble

    with ThreadPoolExecutor(at_once) as pool:
        troubles = dict(zip(todo, pool.map(turn, todo), strict=True))
    if failed := [name for name, trouble in troubles.items() if trouble]:
        raise SystemExit(f"{len(failed)} of {len(todo)} gave no record: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
