"""Progress bar, curves and pictures of a run, written by rank 0 and unable to stop or slow a training.

A training appends JSON lines to a spool file under `<main>/runs/spool`, and that is all it does. A process of its own
(`vtp.tracking.upload`) reads the spool and tells MLflow, so that a dead server, a locked database or a machine without MLflow
costs the training nothing; what was not uploaded stays in the spool until somebody runs `python -m vtp.tracking replay`.

A spool file is called `<stage>-<key>-<n>.jsonl`. Each line holds `kind`, `key`, `value`, `step` and `ts` (milliseconds since
1970); the first line, of kind `open`, says which run the rest belongs to, the last one, of kind `end`, how it ended. The writer
holds a lock on the file as long as it lives, which is how the reader tells a running training from a killed one.

`VTP_TRACKING=off` turns spool and upload off. MLflow is the local `<main>/mlflow.db` unless MLFLOW_TRACKING_URI names a server.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, Literal, ParamSpec, Self

from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
Arguments = ParamSpec("Arguments")

PLAIN_INTERVAL = 30.0  # seconds between two lines of progress where no terminal is there to draw a bar on
RATE_INTERVAL = 1.0  # seconds over which images per second are counted
READ = 1 << 18  # bytes of a spool file that are read, and uploaded, at once

Record = Mapping[str, Any]
"""A line of a spool file."""


def spool_folder(main: Path) -> Path:
    """Where the spool files of a checkout lie."""
    return main / "runs" / "spool"


def _harmless(method: Callable[Concatenate[Track, Arguments], None]) -> Callable[Concatenate[Track, Arguments], None]:
    """Turn every error of a method of `Track` into one warning a run."""

    @functools.wraps(method)
    def wrapped(self: Track, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if self._file is not None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:  # whatever it is, it must not end a training
                self._complain(error)

    return wrapped


class Track:
    """What one run of one stage reports: curves, pictures, parameters, final metrics.

    On ranks other than 0, and with VTP_TRACKING=off, every method does nothing. No method raises: the first failure is logged
    as a warning, later ones are silent. Use `open`, and close it, or use it as a context manager, which knows how it ended.
    """

    def __init__(self, stage: str, main: Path) -> None:
        self.stage, self.main = stage, main
        self._file: BinaryIO | None = None
        self._path = Path()
        self._torn = self._complained = False
        self._uploader: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(
        cls,
        stage: str,
        key: str,
        *,
        main: Path,
        variant: str,
        parameters: Mapping[str, Any],
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Track:
        """Begin a spool file for this stage; a resumed stage, called with the same key, begins another one of the same run.

        Args:
            stage: name of the stage and of its run in MLflow.
            key: fingerprint of the stage's work; (stage, key) is one run in MLflow, however often it was interrupted.
            main: root of the main checkout; runs/spool, mlflow.db and mlartifacts are there.
            variant: hash of all parameters that change a result; one parent run each.
            parameters: those parameters, nested as in params.yaml; they are stored with the parent run.
            run_name: name of the parent run; None takes that of the DVC experiment it runs in, or keeps the name it has, at
                first the beginning of `variant`.
            tags: stored with the stage's run and with the parent.
        """
        track = cls(stage, main)
        try:
            if wanted():
                track._path, track._file = _new_spool(main, f"{stage or 'pipeline'}-{key}")
                name = run_name or os.environ.get("DVC_EXP_NAME")
                about = {"stage": stage, "key": key, "variant": variant, "run_name": name, "tags": dict(tags or {})}
                track._write([("open", stage, about | {"parameters": flatten(parameters, ".")}, 0)])
        except Exception as error:
            track._complain(error)
        return track

    @_harmless
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point at `step` to the curve of each name."""
        self._write(("scalar", name, float(value), step) for name, value in values.items())
        self._wake()

    @_harmless
    def picture(self, name: str, array: np.ndarray, step: int) -> None:
        """Keep a picture, uint8 (H, W, 3), as PNG."""
        from PIL import Image

        now = _now()
        # The name is MLflow's own for a picture with a slider over steps; it depends on nothing but the record, so that a
        # repeated upload overwrites instead of adding.
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._path.stem}/{name}/{step}/{now}")
        file = f"{name.replace('/', '~')}+step+{step}+timestamp+{now}+{unique}.png"
        path = self._path.parent / "pictures" / self._path.stem / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, compress_level=1)
        self._write([("picture", name, str(path.relative_to(self._path.parent)), step)])
        self._wake()

    @_harmless
    def parameters(self, values: Mapping[str, Any]) -> None:
        """Parameters of this stage's own run, nested or flat. A name that the run has already keeps its first value."""
        self._write(("parameter", name, value, 0) for name, value in flatten(values, ".").items())
        self._wake()

    @_harmless
    def final(self, values: Mapping[str, float]) -> None:
        """Final metrics: `final/<name>` of the stage's run, `<stage>/<name>` of the parent run."""
        self._write(("final", name, float(value), 0) for name, value in values.items())

    @_harmless
    def close(self, status: Status = "FINISHED") -> None:
        """End the run; closing twice is fine."""
        file = self._file
        assert file is not None
        try:
            self._write([("end", "status", status, 0)])
            self._wake(again=True)
        finally:
            self._file = None
            fcntl.flock(file, fcntl.LOCK_UN)  # forked loader workers share the lock, and may live a little longer
            file.close()

    def bar(self, total: int, initial: int = 0) -> Bar:
        """Progress over steps [initial, total) of this stage. It is there without tracking too, but on rank 0 only."""
        return Bar(self.stage, total, initial, shown=_is_main())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _write(self, records: Iterable[tuple[str, str, Any, int]]) -> None:
        """Append records (kind, key, value, step) in one go."""
        assert self._file is not None
        now = _now()
        lines = [
            json.dumps({"kind": k, "key": n, "value": v, "step": s, "ts": now}, default=str) + "\n" for k, n, v, s in records
        ]
        data = ("\n" if self._torn else "").encode() + "".join(lines).encode()
        self._torn = True  # until proved otherwise: a full disk leaves half a line
        self._torn = self._file.write(data) != len(data)
        if self._torn:
            raise OSError(f"{self._path} took only a part of a record; is the disk full?")

    def _wake(self, again: bool = False) -> None:
        """Start the uploader, once; `again`: also if the one that was started has gone."""
        if self._uploader is None or (again and self._uploader.poll() is not None):
            self._uploader = _start_uploader(self.main)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.warning("tracking of %s failed (%s: %s); training goes on.", self.stage, type(error).__name__, error)


class Bar:
    """Progress over steps with loss and images per second: a bar on a terminal, a line of log now and then elsewhere."""

    def __init__(self, label: str, total: int, initial: int, *, shown: bool) -> None:
        self._label, self._total, self._step, self._shown = label, total, initial, shown
        self._loss: float | None = None
        self._figures, self._rate, self._images = "", 0.0, 0
        self._counted = self._told = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._tqdm = tqdm(total=total, initial=initial, desc=label, unit="step", dynamic_ncols=True) if terminal else None

    def advance(self, images: int, loss: float | None = None, figures: str | None = None) -> None:
        """One step is done.

        Args:
            images: of the global batch.
            loss, figures: to show from now on; None keeps those shown (reading a loss makes the host wait for the device).
        """
        if not self._shown:
            return
        self._step += 1
        self._images += images
        self._loss = self._loss if loss is None else loss
        self._figures = self._figures if figures is None else figures
        now = time.monotonic()
        if now - self._counted >= RATE_INTERVAL:
            self._rate, self._images, self._counted = self._images / (now - self._counted), 0, now
        try:
            if self._tqdm is not None:
                self._tqdm.set_postfix_str(self._facts(), refresh=False)
                self._tqdm.update()
            elif now - self._told >= PLAIN_INTERVAL:
                self._told = now
                self._tell()
        except OSError:  # the terminal was closed
            self._shown = False

    def close(self) -> None:
        """Draw or log the last state; closing twice is fine."""
        if not self._shown:
            return
        self._shown = False
        try:
            if self._tqdm is not None:
                self._tqdm.close()
            else:
                self._tell()
        except OSError:
            pass

    def _tell(self) -> None:
        log.info("%s step %d/%d: %s", self._label, self._step, self._total, self._facts())

    def _facts(self) -> str:
        facts = [f"loss {self._loss:.4g}" if self._loss is not None else "", f"{self._rate:.0f} images/s" if self._rate else ""]
        return ", ".join(fact for fact in (*facts, self._figures) if fact) or "no figures yet"


def publish(
    main: Path,
    variant: str,
    parameters: Mapping[str, Any],
    final: Mapping[str, Any],
    *,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Complete the parent run of a variant: all its parameters, and `<stage>/<name>` for every final metric.

    Stages that DVC restored from its cache did not run, and so told nobody anything; this says it for them. Never raises.

    Args:
        main, variant, parameters, run_name, tags: as for `Track.open`.
        final: metrics, nested by stage and name.
    """
    with Track.open("", variant, main=main, variant=variant, parameters=parameters, run_name=run_name, tags=tags) as track:
        track.final(flatten(final, "/"))


@dataclass
class Position:
    """How far a spool file is at `to`: `offset` bytes, the last record of time `ts` (ms); its `status` once the end was seen."""

    to: str
    offset: int = 0
    ts: int = 0
    status: str = ""
    done: bool = False


class Spool:
    """One spool file as its reader sees it."""

    def __init__(self, path: Path, to: str) -> None:
        self.path, self._pos_path = path, path.with_suffix(".pos")
        self.elsewhere = False
        self.position = Position(to)
        try:
            noted = Position(**json.loads(self._pos_path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return
        if noted.to == to:
            self.position = noted
        else:
            self.elsewhere = noted.done

    @property
    def series(self) -> str:
        """Stage and key: what the spool files of one run have in common."""
        return self.path.stem.rpartition("-")[0]

    def pending(self) -> bool:
        """True unless everything was uploaded."""
        return not self.position.done or self.path.stat().st_size > self.position.offset

    def alive(self) -> bool:
        """True while its writer lives."""
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def about(self) -> Record | None:
        """The first record, which says what run this is; None if its writer did not get that far."""
        with self.path.open("rb") as file:
            records = _parse(file.readlines(1))
        return records[0]["value"] if records and records[0]["kind"] == "open" else None

    def read(self) -> tuple[list[Record], int]:
        """The next whole lines, and the offset after them."""
        with self.path.open("rb") as file:
            file.seek(self.position.offset)
            lines = [line for line in file.readlines(READ) if line.endswith(b"\n")]
        return _parse(lines), self.position.offset + sum(map(len, lines))

    def note(self) -> None:
        """Write the position down."""
        temporary = self._pos_path.with_suffix(".pos.new")
        temporary.write_text(json.dumps(asdict(self.position)))
        os.replace(temporary, self._pos_path)


def _parse(lines: list[bytes]) -> list[Record]:
    """Records of whole lines; what a full disk cut is left out."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            if line.strip():
                log.warning("left out a broken line of a spool file: %r", line[:80])
            continue
        records.append(record)
    return records


def flatten(nested: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Nested mappings as one, with joined names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{rest}": inner for rest, inner in flatten(value, separator).items()}
        else:
            flat[str(name)] = value
    return flat


def _now() -> int:
    return time.time_ns() // 1_000_000


def _is_main() -> bool:
    from vtp import dist  # here, because the uploader and `ui` have no use for torch

    return dist.is_main()


def wanted() -> bool:
    """Whether this process is to track anything: VTP_TRACKING is not off, and its rank is 0."""
    switch = os.environ.get("VTP_TRACKING", "on")
    if switch not in ("on", "off"):
        log.warning("VTP_TRACKING=%s is neither on nor off; tracking stays on.", switch)
    return switch != "off" and _is_main()


def _new_spool(main: Path, stem: str) -> tuple[Path, BinaryIO]:
    """The next free `<stem>-<n>.jsonl`, created and locked by this process."""
    folder = spool_folder(main)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = folder / f"{stem}-{number:04d}.jsonl"
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError:
            number += 1
            continue
        fcntl.flock(file, fcntl.LOCK_EX)
        return path, file


def _start_uploader(main: Path) -> subprocess.Popen[bytes]:
    """`python -m vtp.tracking upload <main>`, detached: it outlives this process, and no signal of the terminal reaches it.

    Its working directory is the main checkout, because the copy that `dvc exp run --temp` works in is deleted at the end. The
    code comes from there too; from this file's checkout if the main one has none.
    """
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "vtp.tracking", "upload", str(main)]
    with (spool_folder(main) / "upload.log").open("ab") as out:
        return subprocess.Popen(
            command, cwd=main, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
