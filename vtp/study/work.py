"""Working through a study: what is done is skipped, what diverges is marked, what fails is tried again next time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vtp.lock import Lock
from vtp.study.plan import Study
from vtp.study.process import Failure, Outcome, Runner
from vtp.study.records import Record, Records, Status, record

log = logging.getLogger(__name__)


def run(study: Study, records: Records, runner: Runner, lock: Lock, *, retry: bool) -> None:
    """Run every cell that has no record yet; each has one as soon as it ends.

    Args:
        lock: of the folder the study works in; somebody else's study there is an error.
        retry: also run again what diverged.

    Raises:
        Held: another study is running.
        Stopped: a stage was asked to stop; what is running goes on from there next time.
    """
    with lock.held(wait=False):
        waiting = [cell for cell in study.cells if not _settled(records.find(cell), retry)]
        log.info("study %s: %d cells, %d to run", study.name, len(study.cells), len(waiting))
        if waiting:
            runner.open()
        begin = time.monotonic()
        for number, cell in enumerate(waiting, 1):
            log.info("[%d/%d] %s%s", number, len(waiting), cell.name, _left(begin, number, len(waiting)))
            start = time.monotonic()
            try:
                outcome = runner.run(cell)
            except Failure as failure:
                status: Status = "diverged" if failure.diverged else "failed"
                log.warning("%s %s: %s", cell.name, status, failure)
                made = record(study, cell, status, message=str(failure), numbers={}, seconds=time.monotonic() - start)
            else:
                made = record(study, cell, "done", numbers=outcome.numbers, seconds=time.monotonic() - start)
                _keep_pictures(outcome, records.picture(cell.name))
                log.info("%s", sentence(made))
            records.save(made)
        log.info("study %s: %s", study.name, state(study, records))


def state(study: Study, records: Records) -> str:
    """How many cells are done, diverged, failed and waiting, in words."""
    found = [records.find(cell) for cell in study.cells]
    counts = Counter(known.status if known else "waiting" for known in found)
    return ", ".join(f"{counts[word]} {word}" for word in ("done", "diverged", "failed", "waiting") if counts[word])


def sentence(made: Record) -> str:
    """The numbers of a run on one line."""
    numbers: Mapping[str, float | None] = {
        "rFD": made.rfd, "gFD": made.gfd, "gFD guided": made.gfd_guided, "probe": made.linear_probe_top1, "PSNR": made.psnr
    }  # fmt: skip
    if made.status != "done":
        return f"{made.cell}: {made.status} ({made.message})"
    return f"{made.cell}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)


def _settled(known: Record | None, retry: bool) -> bool:
    return known is not None and (known.status == "done" or (known.status == "diverged" and not retry))


def _left(begin: float, number: int, total: int) -> str:
    """How long the rest may take, going by the cells that ran."""
    if number == 1:
        return ""
    each = (time.monotonic() - begin) / (number - 1)
    return f" (about {each * (total - number + 1) / 60:.0f} min left)"


def _keep_pictures(outcome: Outcome, file: Path) -> None:
    """The strips of originals, reconstructions and samples under one another, as small as they are."""
    strips = [outcome.outs[stage] / "strip.png" for stage in ("evaluate_tokenizer", "evaluate_generation")]
    if all(strip.exists() for strip in strips):
        from vtp.reporting.pictures import save_png

        sheets = [np.array(Image.open(strip).convert("RGB")) for strip in strips]
        save_png(file, np.concatenate(sheets))
