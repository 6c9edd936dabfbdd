"""Working through a study: what is done is skipped, what diverges is marked, what fails is tried again next time."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from PIL import Image

from vtp.artifacts import MANIFEST, load_json
from vtp.lock import Lock
from vtp.study.plan import Cell, Study
from vtp.study.process import Failure, Outcome, Runner
from vtp.study.records import Record, Records, Status, record

log = logging.getLogger(__name__)

POLL = 1.0  # seconds after which a signal is heard that came to another thread than the one that acts on it


def run(study: Study, records: Records, runner: Runner, lock: Lock, *, retry: bool, at_once: int = 1) -> None:
    """Run every cell that has no record yet; each has one as soon as it ends.

    Args:
        lock: of the folder the study works in; somebody else's study there is an error.
        retry: also run again what diverged.
        at_once: cells at work at the same time, each in a thread that waits for its stages.

    Raises:
        Held: another study is running.
        Stopped: a stage was asked to stop; what is running goes on from there next time.
    """
    with lock.held(wait=False):
        waiting = [cell for cell in study.cells if not _settled(records.find(cell), retry)]
        total, took = len(waiting), list[float]()
        log.info("study %s: %d cells, %d to run", study.name, len(study.cells), total)
        if waiting:
            runner.open()
        running: dict[Future[float], tuple[Cell, float]] = {}
        with contextlib.closing(runner), ThreadPoolExecutor(at_once) as threads:
            try:
                while waiting or running:
                    while waiting and len(running) < at_once:
                        cell = _next(waiting, [cell for cell, _ in running.values()])
                        left = _left(took, [begin for _, begin in running.values()], len(waiting), at_once)
                        log.info("[%d/%d] %s%s", total - len(waiting) + 1, total, cell.name, left)
                        waiting.remove(cell)
                        running[threads.submit(_work, study, cell, runner, records)] = cell, time.monotonic()
                    for ended in wait(running, POLL, FIRST_COMPLETED).done:
                        del running[ended]
                        took.append(ended.result())
            except BaseException:  # a signal, too: it comes to this thread
                log.info("stopping: %d cells at work, which save first", len(running))
                runner.stop()
                raise
        log.info("study %s: %s", study.name, state(study, records))


def _work(study: Study, cell: Cell, runner: Runner, records: Records) -> float:
    """Run a cell and keep its record: seconds that it took."""
    start = time.monotonic()
    try:
        outcome = runner.run(cell)
    except Failure as failure:
        status: Status = "diverged" if failure.diverged else "failed"
        log.warning("%s %s: %s", cell.name, status, failure)
        made = record(study, cell, status, message=str(failure), numbers={}, seconds=time.monotonic() - start)
    else:
        numbers = outcome.numbers | _measured_with(outcome)
        made = record(study, cell, "done", numbers=numbers, seconds=time.monotonic() - start)
        _keep_pictures(outcome, records.picture(cell.name))
        log.info("%s", sentence(made))
    records.save(made)
    return made.seconds


def _next(waiting: Sequence[Cell], running: Sequence[Cell]) -> Cell:
    """The first cell that begins as few of the running ones do: it neither waits for them nor does what they could leave it."""
    begun = [cell.training for cell in running]
    return min(waiting, key=lambda cell: begun.count(cell.training))


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


def _left(took: Sequence[float], begun: Sequence[float], waiting: int, at_once: int) -> str:
    """How long the rest may take, going by the cells that ran: those that wait, and what is left of the running ones."""
    if not took:
        return ""
    each, now = statistics.fmean(took), time.monotonic()
    rest = each * waiting + sum(max(0.0, each - (now - begin)) for begin in begun)
    return f" (about {rest / at_once / 60:.0f} min left)"


def _measured_with(outcome: Outcome) -> dict[str, str | None]:
    """The network in whose features distances were taken, as the evaluation wrote it down."""
    manifest = outcome.outs["evaluate_tokenizer"] / MANIFEST
    return {"metric_network": load_json(manifest).get("metric_network")} if manifest.exists() else {}


def _keep_pictures(outcome: Outcome, file: Path) -> None:
    """The strips of originals, reconstructions and samples under one another, as small as they are."""
    strips = [outcome.outs[stage] / "strip.png" for stage in ("evaluate_tokenizer", "evaluate_generation")]
    if all(strip.exists() for strip in strips):
        from vtp.reporting.pictures import save_png

        sheets = [np.array(Image.open(strip).convert("RGB")) for strip in strips]
        save_png(file, np.concatenate(sheets))
