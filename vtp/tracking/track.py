"""Curves, pictures and figures of a run, written by rank 0 and unable to stop or slow a training.

A training appends JSON lines to a spool file (`vtp.tracking.spool`), and that is all it does. A process of its own
(`vtp.tracking.upload`) reads the spool and tells MLflow, so that a dead server, a locked database or a machine without MLflow
costs the training nothing; what was not uploaded stays in the spool until somebody runs `python -m vtp.tracking replay`.

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
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Concatenate, Literal, ParamSpec, Self

from vtp.tracking.bar import Bar
from vtp.tracking.spool import create, spool_folder

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
Arguments = ParamSpec("Arguments")


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
                track._path, track._file = create(main, f"{stage or 'pipeline'}-{key}")
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
