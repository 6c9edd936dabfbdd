"""Running the stages of variants without DVC, as on a borrowed GPU machine.

Stages run in a copy of the code below `runs/copies/`, so that neither the checkout's outs nor its params.yaml are touched. What a
stage made is kept in `runs/studies/stages/<stage>/<fingerprint>/` and linked into the copy for every variant that shares it; the
fingerprint is the one its checkpoints lie under: code, parameters and inputs. Variants at work at the same time have a copy each.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from vtp import artifacts
from vtp.artifacts import load_json, remove
from vtp.config import ROOT, ConfigError, parse
from vtp.provenance import Stage, fingerprint, ingredients, stages_of
from vtp.stopping import DIVERGED, EXIT_STATUS
from vtp.study.plan import TEACHER, Cell, Study
from vtp.study.process import Failure, Outcome, Programs, Stopped
from vtp.study.shares import loaders, shares
from vtp.study.shelf import Shelf
from vtp.study.starter import Starter

log = logging.getLogger(__name__)

REPORT = "report"
"""The stage that shows one variant; a study shows all of them itself."""


IMPORTS = ("hydra", "torch._dynamo", "torchvision", "timm", "lpips", "torch_fidelity", "torchmetrics.functional.image")
"""What most stages import, and takes long; torch._dynamo is what every optimizer begins with."""
CONVOLUTIONAL = ("diffusers.models.autoencoders.autoencoder_kl",)
"""... and those with a convolutional tokenizer."""


class Workshop:
    """As many benches as variants are at work at the same time, and the shelf that they share."""

    def __init__(self, main: Path, study: Study, at_once: int = 1) -> None:
        self.main, self.study, self.at_once = main, study, at_once
        self.shelf = Shelf(main / "runs" / "studies" / "stages")
        self.programs = Programs()
        self.benches: list[Bench] = []
        self._free: SimpleQueue[Bench] = SimpleQueue()

    def open(self) -> None:
        """Copy the code as it is now, for each bench; outs of earlier code stay on the shelf under other fingerprints.

        Raises:
            ConfigError: a launcher is to spread each stage over the GPUs that are dealt to several variants.
        """
        if self.at_once > 1 and os.environ.get("VTP_LAUNCH"):
            raise ConfigError(
                "VTP_LAUNCH spreads each stage over all GPUs, --at-once gives each cell one of them; drop one of the two."
            )
        name = self.study.name
        names = [name] if self.at_once == 1 else [f"{name}-{number}" for number in range(1, self.at_once + 1)]
        imports, trial = imported(self.study)
        self.benches = [
            Bench(name, self, Starter(copy_of(self.main, name), share, imports, trial))
            for name, share in zip(names, shares(self.at_once), strict=True)
        ]
        self._free = SimpleQueue()
        for bench in self.benches:
            bench.open()
            self._free.put(bench)

    def run(self, cell: Cell) -> Outcome:
        """Every stage of a variant but its report, on the next bench that is free.

        A stage that another bench is at is waited for, unless there is something else to do for this variant. If it fails there,
        it is tried again here: it may have been a matter of memory.
        """
        bench = self._free.get()
        try:
            return bench.run(cell)
        finally:
            self.shelf.let_go(bench.name)
            self._free.put(bench)

    def stop(self) -> None:
        self.programs.stop()

    def close(self) -> None:
        for bench in self.benches:
            bench.starter.close()


@dataclass(frozen=True)
class Bench:
    """A copy of the code in which the stages of one variant at a time run, with a log of its own.

    Attributes:
        name: of the copy and of the log.
        starter: of its stages, with its share of the machine.
    """

    name: str
    shop: Workshop
    starter: Starter

    @property
    def copy(self) -> Path:
        """Where the code is, and where stages look for their inputs."""
        return copy_of(self.shop.main, self.name)

    def open(self) -> None:
        """Copy the code."""
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
        self._begin(cell)
        stages = order(self.copy)
        waiting, kept = list(stages), dict[str, Path]()
        while waiting:
            stage, place = self._stage(waiting, cell)
            waiting.remove(stage)
            kept[stage] = place
        numbers: dict[str, Any] = {}
        for stage in stages:
            for file in sorted((kept[stage] / "reports").glob("*.json")):
                numbers |= load_json(file)
        return Outcome(numbers, {stage: kept[stage] / "data" / stage for stage in stages})

    def _stage(self, waiting: Sequence[str], cell: Cell) -> tuple[str, Path]:
        """One of these stages, from the shelf or run now: its name, and where its outs are kept.

        It is the first that has its inputs and that no other bench is at; without one, the very first, which has its inputs.
        """
        shelf = self.shop.shelf
        for name in waiting:
            inputs = Stage.read(name, parse(cell.tree), self.copy).inputs
            if not all((self.copy / path).exists() for path in inputs):
                continue
            place = self._place(name, cell)
            if shelf.take(place, self.name, wait=False):
                break
        else:
            name, place = waiting[0], self._place(waiting[0], cell)
            log.info("%s: waiting for %s, which another cell shares", cell.name, name)
            shelf.take(place, self.name, wait=True)
        try:
            self._make(name, place, cell)
        finally:
            shelf.give(place)
        return name, place

    def _place(self, name: str, cell: Cell) -> Path:
        """Where the outs of a stage belong; its inputs are there."""
        params = parse(cell.tree)
        return self.shop.shelf.place(name, fingerprint(ingredients(Stage.read(name, params, self.copy), params, self.copy)))

    def _make(self, name: str, place: Path, cell: Cell) -> None:
        """Run a stage whose outs are not in their place yet, and link them into the copy."""
        outs, start = _made(self.copy, name), time.monotonic()
        if not place.is_dir():
            log.info("%s: %s ...", cell.name, name)
            self._execute(name, cell)
            self.shop.shelf.put(place, self.copy, outs)
            # Its own checkpoints are no longer needed; those it shares stay.
            shutil.rmtree(self.shop.main / "runs" / name / place.name / "checkpoints", ignore_errors=True)
            log.info("%s: %s took %.0f s", cell.name, name, time.monotonic() - start)
        for path in outs:
            (self.copy / path).parent.mkdir(parents=True, exist_ok=True)
            (self.copy / path).symlink_to(place / path)

    def _taught(self, cell: Cell) -> Cell:
        """The cell with the folder of the study's teacher in its parameters, where it needs one; the teacher is trained now."""
        teacher = self.shop.study.teacher
        if teacher is None or not cell.taught:
            return cell
        self._begin(teacher)
        _, place = [self._stage([stage], teacher) for stage in ("prepare", "pretrain")][-1]
        tree = json.loads(json.dumps(cell.tree).replace(json.dumps(TEACHER), json.dumps(str(place / "data" / "pretrain"))))
        return dataclasses.replace(cell, tree=tree)

    def _begin(self, cell: Cell) -> None:
        """Put the parameters of a cell into the copy, and the pin of the tokenizer it is given, if any; outs of others go."""
        from vtp.data.pins import write_given_pin
        from vtp.models.kinds import FILES

        for stage in order(self.copy):
            for path in _made(self.copy, stage):
                remove(self.copy / path)
        with artifacts.aside(self.copy / "params.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(cell.tree | {"run": self._how(cell)}, sort_keys=False))
        write_given_pin("tokenizer", parse(cell.tree).given_tokenizer, FILES, self.copy / "data" / "inputs")

    def _how(self, cell: Cell) -> dict[str, Any]:
        """The parameters of `run`: variants do not wait for each other's unfinished work, and are called by their cell.

        How many loading processes a bench may have depends on the cores of this machine.
        """
        how = cell.tree["run"]
        workers = loaders(how["workers"], self.shop.at_once)
        return how | {"alongside": True, "name": f"{self.shop.study.name}-{cell.name}", "workers": workers}

    def _execute(self, name: str, cell: Cell) -> None:
        file = self.shop.main / "runs" / "studies" / f"{self.name}.log"
        self.starter.ready()  # its imports take a while, and a signal must be heard meanwhile
        status, said = self.shop.programs.run(partial(self.starter.start, f"stages.{name}"), file, f"{cell.name}: {name}")
        if status == EXIT_STATUS:
            raise Stopped
        if status:
            raise Failure(said or f"{name}: exit status {status}", diverged=status == DIVERGED)


def copy_of(main: Path, bench: str) -> Path:
    """The folder in which the stages of a bench run."""
    return main / "runs" / "copies" / bench


def imported(study: Study) -> tuple[Sequence[str], str]:
    """What there is no need to import for each stage anew, and what a stage must be able to do thereafter."""
    import torch

    if torch.cuda.device_count():  # diffusers asks the driver as it is imported
        return IMPORTS, "import torch; torch.zeros(1, device='cuda')"
    convolutional = any(cell.tree["tokenizer"]["network"] == "convolutional" for cell in study.cells)
    return (*IMPORTS, *(CONVOLUTIONAL if convolutional else ())), "pass"


def order(checkout: Path) -> list[str]:
    """The stages of a checkout but `report`, each after those whose outs it needs."""
    stages = stages_of(checkout)
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


def _made(checkout: Path, name: str) -> list[Path]:
    """Everything a stage writes: outs, metrics, plots."""
    stage = stages_of(checkout)[name]
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, ())]
    return [Path(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]
