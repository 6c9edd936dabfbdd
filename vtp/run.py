"""One execution of a stage: its lock, its resumable state, its launcher, its outs.

Resumable state lies in the main checkout's `runs/<stage>/<fingerprint>/`, so the same work goes on after any interruption, and
different work never picks it up unasked.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtp import stopping
from vtp.artifacts import folder_aside, load_json, remove, save_json, settle, write_manifest
from vtp.config import ROOT, ConfigError, Params, RunParams, load
from vtp.lock import Lock
from vtp.provenance import Stage, differences, fingerprint, ingredients, main_checkout, what_parameters, without_length

log = logging.getLogger(__name__)

INGREDIENTS, FINISHED, SUPERSEDED, ADOPTED = "ingredients.json", "finished.json", "superseded.json", "adopted.json"
"""In a run's folder: what it was made from; that its outs are written; the run that replaces it; the run it went on from."""
MACHINE = "machine.json"
"""There as well: the conditions under which it began."""


class Run:
    """One execution of a stage.

    Attributes:
        work: the folder for resumable state, below the main checkout.
        key: the fingerprint.
        variant: hash of `parameters`, everything in params.yaml that can change a result: one pipeline variant.
    """

    def __init__(self, stage: str, params: Params) -> None:
        self.stage = Stage.read(stage, params)
        self.what = ingredients(self.stage, params)
        self.key = fingerprint(self.what)
        self.parameters = what_parameters(params)
        self.variant = fingerprint(self.parameters)
        self.main = main_checkout()
        self.work = self.main / "runs" / stage / self.key

    @property
    def adopted(self) -> bool:
        """Whether it went on from a run of other code or parameters."""
        return (self.work / ADOPTED).exists()

    def shared(self, conditions: dict[str, Any]) -> Path:
        """Where trainings that differ from this one in their length only, under equal conditions, keep what they share."""
        return self.work.parent / "shared" / fingerprint(without_length(self.what) | {"conditions": conditions})

    @contextmanager
    def out(self, about: dict[str, Any] | None = None) -> Iterator[Path]:
        """A new folder, the same on all ranks, that becomes the stage's out if nothing changed under the stage while it ran."""
        from vtp import dist

        target = ROOT / self.stage.outs[0]
        folder = target.with_name(f".{target.name}.{self.key}.new")  # another run has another: both may be at work
        if dist.is_main():
            self.check()
            for old in target.parent.glob(f".{target.name}.*.new"):
                if old == folder or Lock(self.work.parent / old.name.split(".")[-2] / "lock").free():
                    remove(old)
            folder.mkdir(parents=True)
        dist.barrier()
        yield folder
        dist.barrier()
        if dist.is_main():
            self.check()
            adopted = load_json(self.work / ADOPTED) if self.adopted else {}
            write_manifest(folder, {"stage": self.stage.name, **adopted, **(about or {})})
            remove(target)
            folder.replace(target)
        dist.barrier()

    def metrics(self, name: str, values: dict[str, Any]) -> None:
        """Write `reports/<name>.json`."""
        from vtp import dist

        if dist.is_main():
            save_json(ROOT / "reports" / f"{name}.json", values)

    def check(self) -> None:
        """Compare code, parameters and inputs with what they were at the start.

        Raises:
            ConfigError: naming what was edited meanwhile. DVC would record the edit as what this run used.
        """
        changed = differences(self.what, ingredients(self.stage, load(_overrides()), ROOT))
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} changed while {self.stage.name} ran; what it made does not count. "
                f"Run it again: what was trained is kept under {self.work}."
            )

    def settle_past(self, how: RunParams) -> None:
        """Decide, under the lock, what earlier work this run goes on from: its own, an adopted one's, or none.

        Raises:
            ConfigError: unfinished work on the same inputs lies under another fingerprint and nobody said what to do with it; or
                `run.adopt` names no run.
        """
        if how.fresh and how.adopt:
            raise ConfigError("run.fresh=true and run.adopt exclude each other; set one of them back.")
        others = self._unfinished_others()
        if how.fresh:
            log.info("run.fresh=true: %s starts afresh", self.stage.name)
            for name in ("checkpoints", FINISHED, ADOPTED, MACHINE):
                remove(self.work / name)
        elif how.adopt and how.adopt != self.key and not self._started():
            self._adopt(how.adopt)
        elif others and not self._started() and not how.alongside:
            told = "; ".join(
                f"{folder.name} (its step {_last_step(folder)}) differs in {', '.join(self._differences(folder)[:6])}"
                for folder in others[:3]
            )
            raise ConfigError(
                f"unfinished work on the same inputs lies in {others[0].parent}: {told}. "
                f"run.adopt={others[0].name} goes on from it, run.fresh=true starts afresh, run.alongside=true leaves it alone."
            )
        if how.fresh or how.adopt:
            for folder in others:
                save_json(folder / SUPERSEDED, {"by": self.key})
        save_json(self.work / INGREDIENTS, self.what)

    def _started(self) -> bool:
        return _last_step(self.work) > 0 or (self.work / FINISHED).exists()

    def _unfinished_others(self) -> list[Path]:
        """Folders of this stage with checkpoints on the same inputs, abandoned by whoever trained there; the newest first."""
        found = []
        for folder in self.work.parent.glob("*"):
            ended = any((folder / name).exists() for name in (FINISHED, SUPERSEDED))
            if folder == self.work or ended or not (folder / INGREDIENTS).exists() or not _last_step(folder):
                continue
            if load_json(folder / INGREDIENTS)["inputs"] == self.what["inputs"] and Lock(folder / "lock").free():
                found.append(folder)
        return sorted(found, key=lambda folder: (folder / "checkpoints").stat().st_mtime, reverse=True)

    def _differences(self, folder: Path) -> list[str]:
        return differences(load_json(folder / INGREDIENTS), self.what)

    def _adopt(self, key: str) -> None:
        """Take over the checkpoints of another run; the outs' manifest will say so."""
        source = self.work.parent / key
        if not _last_step(source):
            if not list((self.main / "runs").glob(f"*/{key}")):
                raise ConfigError(f"run.adopt={key} names no run below {self.main / 'runs'}; set it to null.")
            return  # a run of another stage, for which it was meant
        changed = self._differences(source)
        log.info("going on from the run %s, which differs in %s", key, ", ".join(changed))
        # The record first: checkpoints that nobody says are another run's must not be left by a kill in between.
        save_json(self.work / ADOPTED, {"adopted": key, "adopted_differences": changed})
        with folder_aside(self.work / "checkpoints") as folder:
            shutil.copytree(source / "checkpoints", folder, dirs_exist_ok=True)
            settle(folder)


def _last_step(folder: Path) -> int:
    """Step of the newest checkpoint in a run's folder, 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*")), default=0)


@contextmanager
def open_run(stage: str, params: Params, *, launchable: bool = False) -> Iterator[Run]:
    """Take the stage's lock and record what it works from. A second run of the same work waits for the first.

    Args:
        launchable: with VTP_LAUNCH set ("torchrun --nproc-per-node 8 -m", say) the process replaces itself by that launcher,
            which starts this stage again on every rank; the lock stays with the launcher.
    """
    run = Run(stage, params)
    if "DVC_STAGE" not in os.environ:
        log.info("%s runs without DVC: its outs are written, and nothing records them", stage)
    run.work.mkdir(parents=True, exist_ok=True)
    lock = Lock(run.work / "lock")
    if os.environ.get("RANK", "0") != "0":
        yield run
    elif os.environ.get("VTP_LOCK") == str(lock.path):
        with lock.joined():
            yield from _finished(run)
            lock.path.unlink(missing_ok=True)
    else:
        with lock.held():
            run.settle_past(params.run)
            if launchable and os.environ.get("VTP_LAUNCH"):
                _launch(os.environ["VTP_LAUNCH"], stage, lock)
            yield from _finished(run)


def _finished(run: Run) -> Iterator[Run]:
    """Lend the run, and note its end; an edit that came after the outs were written keeps DVC from recording them."""
    yield run
    run.check()
    save_json(run.work / FINISHED, {})


def _launch(launcher: str, stage: str, lock: Lock) -> None:
    """Become `<launcher> stages.<stage> <overrides>`, lock in hand."""
    command = [*shlex.split(launcher), f"stages.{stage}", *_overrides()]
    lock.hand_over()
    # torchrun passes on the signals named here, so that every rank saves.
    handled = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    log.info("launching %s", shlex.join(command))
    try:
        os.execvpe(command[0], command, os.environ | {"VTP_LOCK": str(lock.path), "TORCHELASTIC_SIGNALS_TO_HANDLE": handled})
    except FileNotFoundError:
        raise ConfigError(f"VTP_LAUNCH={launcher}: there is no program {command[0]}.") from None


def entry(main: Callable[[Params], None]) -> None:
    """Run a stage's `main` with the checked parameters. What the user can mend is one line on stderr; exit status 1.

    A training that diverged exits with 65, so that whoever runs many variants can tell it from a fault.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stopping.leave_at_once()
    stage = Path(sys.argv[0]).stem
    params = None
    try:
        params = load(_overrides())
        main(params)
    except stopping.NotFinite as error:
        _end(stage, str(error), stopping.DIVERGED)
    except KeyboardInterrupt:
        _end(stage, "interrupted; the same command goes on from what is saved", stopping.INTERRUPTED)
    except (ValueError, FileNotFoundError) as error:
        _end(stage, str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        _end(stage, f"{error}. What was saved before is whole; mend this, and the same command goes on from it.")
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            _end(
                stage,
                "a process that loads pictures was killed, most likely because memory ran out; lower run.workers, and the same "
                "command goes on from what is saved.",
            )
        if type(error).__name__ != "OutOfMemoryError" or params is None:
            raise
        _end(stage, f"{str(error).split('. ')[0]}. {_smaller(stage, params)}")


def _smaller(stage: str, params: Params) -> str:
    """The setting that lowers the memory of a stage, and to what."""
    from vtp import dist

    training = {
        "pretrain": params.pretrain.batch,
        "finetune_decoder": params.finetune_decoder.batch,
        "train_dit": params.dit.batch,
    }
    using = {
        "train_metric_network": ("evaluate.metric_network.batch", params.evaluate.metric_network.batch),  # is never cut
        "extract_latents": ("latents.batch", params.latents.batch),
        "sample": ("sample.batch", params.sample.batch),
    }
    if stage in training:
        batch = training[stage] // dist.world()
        setting, now = "run.microbatch", min(params.run.microbatch or batch, batch)
        kept = "the weights and the optimizer keep their share, results stay the same, and what was saved before is gone on from"
    else:
        setting, now = using.get(stage, ("evaluate.batch", params.evaluate.batch))
        kept = "the weights keep their share"
    if now == 1:
        return f"One picture at a time is too much already; take a smaller model, more ranks, or run.device=cpu for {stage}."
    half = next(size for size in range(now // 2, 0, -1) if now % size == 0)
    return f"{setting}={half} instead of {now} takes {now / half:.3g} times less for activations ({kept})."


def _end(stage: str, message: str, status: int = 1) -> None:
    trace = main_checkout() / "runs" / f"{stage}.traceback"
    details = f"  (details: {trace})"
    try:
        trace.parent.mkdir(exist_ok=True)
        trace.write_text(traceback.format_exc())
    except OSError:  # the disk is full, perhaps
        details = ""
    sys.stderr.write(f"{stage}: {message}{details}\n")
    raise SystemExit(status) from None


def _overrides() -> list[str]:
    return sys.argv[1:]
