"""Running a variant as a DVC experiment, so that everything it made is in DVC's cache under a name of its own.

Experiments run one after another in copies that DVC makes (`dvc exp run --temp`); the workspace stays as it is. Stages that
variants share come from DVC's cache.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vtp.artifacts import load_json
from vtp.config import ConfigError
from vtp.stopping import DIVERGED, EXIT_STATUS
from vtp.study.plan import Cell, Study, Tree
from vtp.study.process import Failure, Outcome, Programs, Stopped, command

log = logging.getLogger(__name__)

DVC = (sys.executable, "-m", "dvc")
PICTURED = ("evaluate_tokenizer", "evaluate_generation")
"""Stages with pictures among their outs."""


class Experiments:
    """DVC experiments of a checkout, one for each cell: `<study>-<cell>`."""

    def __init__(self, main: Path, study: Study) -> None:
        self.main, self.study, self.teacher = main, study.name, study.teacher
        self.log = main / "runs" / "studies" / f"{study.name}.log"
        self.fetched = main / "runs" / "studies" / "fetched"
        self.programs = Programs()

    def open(self) -> None:
        if self.teacher is not None:
            raise ConfigError("a teacher is trained by `study run --direct` only; name the folder of a tokenizer, and pin it.")
        if not shutil.which("dvc"):
            raise ConfigError("there is no program dvc here; `study run --direct` runs the stages without it.")
        if not (self.main / ".git").exists():
            raise ConfigError(f"{self.main} is no git repository, which experiments need; `study run --direct` works without it.")

    def run(self, cell: Cell) -> Outcome:
        name = f"{self.study}-{cell.name}"
        workspace = yaml.safe_load((self.main / "params.yaml").read_text())
        wanted = cell.tree | {"run": cell.tree["run"] | {"alongside": True}}
        values = [part for item in _changes(workspace, wanted) for part in ("-S", item)]
        log.info("%s: the experiment %s ...", cell.name, name)
        words = [*DVC, "exp", "run", "--temp", "-f", "-n", name, *values]
        status, _ = self.programs.run(command(words, self.main), self.log, cell.name)
        if status:
            raise self._failure()
        return self._outcome(self._revision(name))

    def stop(self) -> None:
        self.programs.stop()

    def close(self) -> None: ...

    def _failure(self) -> Exception:
        """How the last experiment in the log ended, from what DVC says of its stage."""
        said = self.log.read_text(errors="replace").rpartition("\n== ")[2]
        ended = re.search(r"failed to reproduce '(\w+)'.* exited with (\d+)", said)
        if ended and int(ended[2]) == EXIT_STATUS:
            return Stopped()
        lines = [line for line in said.splitlines() if ended and line.startswith(f"{ended[1]}: ")]
        message = lines[-1] if lines else next((line for line in said.splitlines() if line.startswith("ERROR")), "dvc failed")
        return Failure(message, diverged=bool(ended and int(ended[2]) == DIVERGED))

    def _revision(self, name: str) -> str:
        listed = ["git", "for-each-ref", "refs/exps", "--sort=-creatordate", "--format=%(objectname) %(refname)"]
        for line in subprocess.run(listed, cwd=self.main, check=True, capture_output=True, text=True).stdout.splitlines():
            revision, _, reference = line.partition(" ")
            if reference.endswith(f"/{name}"):
                return revision
        raise Failure(f"DVC kept no experiment {name}; the end of {self.log} says why.", diverged=False)

    def _outcome(self, revision: str) -> Outcome:
        """Numbers and pictures of an experiment, out of DVC's cache."""
        shutil.rmtree(self.fetched, ignore_errors=True)
        self.fetched.mkdir(parents=True)
        self._get("reports", revision)
        for stage in PICTURED:
            self._get(f"data/{stage}", revision)
        numbers: dict[str, Any] = {}
        for file in sorted((self.fetched / "reports").glob("*.json")):
            numbers |= load_json(file)
        return Outcome(numbers, {stage: self.fetched / stage for stage in PICTURED})

    def _get(self, path: str, revision: str) -> None:
        target = self.fetched / Path(path).name
        command = [*DVC, "get", ".", path, "--rev", revision, "-o", str(target)]
        ended = subprocess.run(command, cwd=self.main, capture_output=True, text=True)
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or ["no word"]
            raise Failure(f"`dvc get` brought no {path} of the experiment: {said[-1]}", diverged=False)


def _changes(now: Tree, wanted: Tree) -> list[str]:
    """What has to be set for `now` to become `wanted`, in the grammar of `dvc exp run -S`."""
    before = dict(_leaves(now))
    return [f"{key}={json.dumps(value)}" for key, value in _leaves(wanted) if before.get(key, ...) != value]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
