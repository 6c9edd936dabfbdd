"""Running the stages of a variant one after another without DVC, as on a borrowed GPU machine.

Stages run in a copy of the code below `runs/copies/`, so that neither the checkout's outs nor its params.yaml are touched. What a
stage made is kept in `runs/studies/stages/<stage>/<fingerprint>/` and linked into the copy for every variant that shares it; the
fingerprint is the one its checkpoints lie under: code, parameters and inputs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vtp import artifacts
from vtp.artifacts import folder_aside, load_json, remove
from vtp.config import ROOT, parse
from vtp.provenance import Stage, fingerprint, ingredients
from vtp.stopping import DIVERGED, EXIT_STATUS
from vtp.study.plan import TEACHER, Cell, Study
from vtp.study.process import Failure, Outcome, Stopped, supervise

log = logging.getLogger(__name__)

REPORT = "report"
"""The stage that shows one variant; a study shows all of them itself."""

BULKY = ("extract_latents", "sample")
"""Stages whose outs are large and quickly made again: only the newest are kept."""


class Workshop:
    """The copy of the code in which a study's stages run, and the shelf on which their outs are kept."""

    def __init__(self, main: Path, study: Study) -> None:
        self.study, self.teacher = study.name, study.teacher
        self.copy = main / "runs" / "copies" / study.name
        self.shelf = main / "runs" / "studies" / "stages"
        self.log = main / "runs" / "studies" / f"{study.name}.log"

    def open(self) -> None:
        """Copy the code as it is now; outs of earlier code stay on the shelf under other fingerprints."""
        for name in ("vtp", "stages", "data", "reports"):
            shutil.rmtree(self.copy / name, ignore_errors=True)
        for name in ("vtp", "stages"):
            shutil.copytree(ROOT / name, self.copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "data" / "inputs", self.copy / "data" / "inputs")
        shutil.copy2(ROOT / "dvc.yaml", self.copy / "dvc.yaml")

    def run(self, cell: Cell) -> Outcome:
        """Every stage of a variant but its report, those that were run before taken from the shelf.

        Raises:
            Failure: a stage ended badly; what was done until then is kept.
            Stopped: the running stage was asked to stop.
        """
        cell = self._taught(cell)
        self._write(cell)
        numbers: dict[str, Any] = {}
        outs: dict[str, Path] = {}
        for stage in order(self.copy):
            kept = self._stage(stage, cell)
            outs[stage] = kept / "data" / stage
            for file in sorted((kept / "reports").glob("*.json")):
                numbers |= load_json(file)
        return Outcome(numbers, outs)

    def _stage(self, name: str, cell: Cell) -> Path:
        """One stage, from the shelf or run now: where its outs are kept."""
        stage = Stage.read(name, parse(cell.tree), self.copy)
        key = fingerprint(ingredients(stage, parse(cell.tree), self.copy))
        made = _made(self.copy, name)
        for path in made:
            remove(self.copy / path)
        kept, start = self.shelf / name / key, time.monotonic()
        if not kept.is_dir():
            log.info("%s: %s ...", cell.name, name)
            self._execute(name, cell)
            self._keep(name, kept, made)
            log.info("%s: %s took %.0f s", cell.name, name, time.monotonic() - start)
        for path in made:
            (self.copy / path).parent.mkdir(parents=True, exist_ok=True)
            (self.copy / path).symlink_to(kept / path)
        return kept

    def _taught(self, cell: Cell) -> Cell:
        """The cell with the folder of the study's teacher in its parameters, where it needs one; the teacher is trained now."""
        if self.teacher is None or TEACHER not in _values(cell.tree["pretrain"]):
            return cell
        self._write(self.teacher)
        folder = [self._stage(stage, self.teacher) for stage in ("prepare", "pretrain")][-1] / "data" / "pretrain"
        tree = json.loads(json.dumps(cell.tree).replace(json.dumps(TEACHER), json.dumps(str(folder))))
        return dataclasses.replace(cell, tree=tree)

    def _write(self, cell: Cell) -> None:
        """Put the parameters of a cell into the copy, and the pin of the tokenizer it is given, if any."""
        from vtp.data.pins import write_given_pin
        from vtp.models.kinds import FILES

        with artifacts.aside(self.copy / "params.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(cell.tree | {"run": self._how(cell)}, sort_keys=False))
        write_given_pin("tokenizer", parse(cell.tree).given_tokenizer, FILES, self.copy / "data" / "inputs")

    def _how(self, cell: Cell) -> dict[str, Any]:
        """The parameters of `run`: variants do not wait for each other's unfinished work, and are called by their cell."""
        return cell.tree["run"] | {"alongside": True, "name": f"{self.study}-{cell.name}"}

    def _execute(self, name: str, cell: Cell) -> None:
        command = [sys.executable, "-m", f"stages.{name}"]
        status, said = supervise(command, self.copy, self.log, f"{cell.name}: {name}")
        if status == EXIT_STATUS:
            raise Stopped
        if status:
            raise Failure(said or f"{name}: exit status {status}", diverged=status == DIVERGED)

    def _keep(self, name: str, kept: Path, made: list[Path]) -> None:
        """Put the outs of a stage onto the shelf. Its own checkpoints are no longer needed; those it shares stay."""
        if name in BULKY:
            shutil.rmtree(kept.parent, ignore_errors=True)
        with folder_aside(kept) as folder:
            for path in made:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self.copy / path, folder / path)
        shutil.rmtree(self.shelf.parents[1] / name / kept.name / "checkpoints", ignore_errors=True)


def order(checkout: Path) -> list[str]:
    """The stages of a checkout but `report`, each after those whose outs it needs."""
    stages = yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"]
    maker = {path.as_posix(): name for name in stages for path in _made(checkout, name)}
    found: list[str] = []

    def visit(name: str) -> None:
        for dependency in stages[name]["deps"]:
            if dependency in maker:
                visit(maker[dependency])
        if name not in found:
            found.append(name)

    for name in stages:
        visit(name)
    return [name for name in found if name != REPORT]


def _values(tree: Any) -> Iterator[Any]:
    for value in tree.values():
        yield from _values(value) if isinstance(value, dict) else (value,)


def _made(checkout: Path, name: str) -> list[Path]:
    """Everything a stage writes: outs, metrics, plots."""
    stage = yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"][name]
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, ())]
    return [Path(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]
