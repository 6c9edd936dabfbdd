"""What a result depends on: the code a stage can reach, the parameters it lists, the inputs it reads.

dvc.yaml is the one statement of a stage's dependencies. Its code dependencies are computed from imports (`make deps` writes
them), and the same three things give a run its fingerprint, under which it keeps checkpoints: `runs/<stage>/<fingerprint>/`.
"""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtp.artifacts import BrokenArtifact, digest, save_json, write_manifest
from vtp.config import ROOT, ConfigError, Params, load

log = logging.getLogger(__name__)

OBSERVERS = (
    "vtp/__init__.py",
    "vtp/config.py",
    "vtp/typed.py",
    "vtp/provenance.py",
    "vtp/tracking.py",
    "vtp/tracking_upload.py",
    "vtp/tracking_mlflow.py",
)
"""Code that watches or launches and cannot change a result."""


def main_checkout(checkout: Path = ROOT) -> Path:
    """The checkout the user works in; DVC runs some experiments in copies below its `.dvc/tmp/exps`."""
    for parent in checkout.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return checkout


def closure(entry: str, root: Path = ROOT) -> list[str]:
    """Every file of this project that `entry` can import, itself included, without observers: sorted relative paths."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in found or path in OBSERVERS:
            continue
        found.add(path)
        waiting += _imports(root / path, root)
    return sorted(found)


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Files of the project that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in names:
        stem = name.replace(".", "/")
        for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
            if name.split(".")[0] in ("vtp", "stages") and (root / candidate).is_file() and (root / candidate).stat().st_size:
                yield candidate


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, with `${model.size}` filled in."""

    name: str
    code: list[str]
    inputs: list[str]
    parameters: list[str]
    outs: list[str]

    @classmethod
    def read(cls, name: str, params: Params, root: Path = ROOT) -> Stage:
        """The stage called `name`.

        Raises:
            ConfigError: dvc.yaml has no such stage.
        """
        import yaml

        stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
        if name not in stages:
            raise ConfigError(f"dvc.yaml has no stage {name}; it has {', '.join(stages)}.")
        filled = json.loads(re.sub(r"\$\{([\w.]+)\}", lambda m: str(lookup(params, m[1])), json.dumps(stages[name])))
        deps = filled["deps"]
        code = [dep for dep in deps if dep.endswith((".py", ".html"))]
        return cls(name, code, [d for d in deps if d not in code], filled.get("params", []), filled.get("outs", []))


def lookup(params: Params, key: str) -> Any:
    """The value of a dotted key: `lookup(params, "model.sizes.small.encoder")`, tables as dictionaries."""
    value: Any = dataclasses.asdict(params)
    for part in key.split("."):
        value = value[part]
    return value


def what_parameters(params: Params) -> dict[str, Any]:
    """All parameters that can change a result: everything but `run`, and of the ladder only the chosen row."""
    what = dataclasses.asdict(params)
    del what["run"]
    what["model"] = {"size": params.model.size, **dataclasses.asdict(params.sizes)}
    return what


def ingredients(stage: Stage, params: Params, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Everything that decides a stage's result: checksums of code, values of parameters, checksums of inputs.

    Raises:
        BrokenArtifact: an input is missing.
    """
    inputs = {}
    for name in stage.inputs:
        path = root / name / "manifest.json" if (root / name).is_dir() else root / name
        if not path.is_file():
            raise BrokenArtifact(f"{path} is missing; `dvc repro {stage.name}` makes what it needs.")
        inputs[name] = digest(path)
    return {
        "code": {name: digest(root / name) for name in stage.code},
        "params": {key: lookup(params, key) for key in stage.parameters},
        "inputs": inputs,
    }


def fingerprint(what: dict[str, Any]) -> str:
    """16 hexadecimal digits of the ingredients."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


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

    @contextmanager
    def out(self, about: dict[str, Any] | None = None) -> Iterator[Path]:
        """A new folder, the same on all ranks, that becomes the stage's out if nothing changed under the stage while it ran."""
        from vtp import dist

        target = ROOT / self.stage.outs[0]
        folder = target.with_name(f".{target.name}.new")
        if dist.is_main():
            self.check()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier()
        yield folder
        dist.barrier()
        if dist.is_main():
            write_manifest(folder, {"stage": self.stage.name, **(about or {})})
            shutil.rmtree(target, ignore_errors=True)
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
        now = ingredients(self.stage, load(_overrides()), ROOT)
        changed = [name for kind in now for name in now[kind] if now[kind][name] != self.what[kind].get(name)]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} changed while {self.stage.name} ran; nothing was written. "
                f"Run it again: what was trained is kept under {self.work}."
            )


@contextmanager
def open_run(stage: str, params: Params) -> Iterator[Run]:
    """Take the stage's lock and record what it works from. A second run of the same work waits for the first."""
    from vtp import dist

    run = Run(stage, params)
    if "DVC_STAGE" not in os.environ:
        log.info("%s runs without DVC: its outs are written, and nothing records them", stage)
    run.work.mkdir(parents=True, exist_ok=True)
    if not dist.is_main():
        yield run
        return
    with (run.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process trains %s; waiting for it", run.work)
            fcntl.flock(lock, fcntl.LOCK_EX)
        save_json(run.work / "ingredients.json", run.what)
        yield run


def entry(main: Callable[[Params], None]) -> None:
    """Run a stage's `main` with the checked parameters. What the user can mend is one line on stderr; exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stage = Path(sys.argv[0]).stem
    try:
        main(load(_overrides()))
    except (ValueError, FileNotFoundError) as error:
        trace = main_checkout() / "runs" / f"{stage}.traceback"
        trace.parent.mkdir(exist_ok=True)
        trace.write_text(traceback.format_exc())
        raise SystemExit(f"{stage}: {error}  (details: {trace})") from None


def _overrides() -> list[str]:
    return sys.argv[1:]


def write_deps(file: Path = ROOT / "dvc.yaml") -> bool:
    """Bring the code dependencies in dvc.yaml up to date with the imports; True if that changed the file."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 130
    yaml.indent(mapping=2, sequence=4, offset=2)
    before = file.read_text()
    tree = yaml.load(before)
    for stage in tree["stages"].values():
        script = stage["cmd"].split()[-1].replace(".", "/") + ".py"
        data = [dep for dep in stage["deps"] if not dep.endswith(".py")]
        stage["deps"] = closure(script) + data
    with file.open("w") as out:
        yaml.dump(tree, out)
    return file.read_text() != before


if __name__ == "__main__":
    write_deps()
