"""What a result depends on: the code a stage can reach, the parameters it lists, the inputs it reads.

dvc.yaml is the one statement of a stage's dependencies. Its code dependencies are computed from imports (`make deps` writes
them), and the same three things give a run its fingerprint, under which it keeps checkpoints: `runs/<stage>/<fingerprint>/`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtp.artifacts import BrokenArtifact, aside, digest
from vtp.config import ROOT, ConfigError, Params

OBSERVERS = (
    "vtp/__init__.py",
    "vtp/config.py",
    "vtp/config_data.py",
    "vtp/typed.py",
    "vtp/lock.py",
    "vtp/provenance.py",
    "vtp/run.py",
    "vtp/stopping.py",
    "vtp/tracking/",
)
"""Files and folders of code that watches or launches and cannot change a result."""


def main_checkout(checkout: Path = ROOT) -> Path:
    """The checkout the user works in: DVC runs experiments in copies below its `.dvc/tmp/exps`, a study below `runs/copies`."""
    for parent in checkout.parents:
        for copies in ((".dvc", "tmp", "exps"), ("runs", "copies")):
            if parent.parts[-len(copies) :] == copies:
                return parent.parents[len(copies) - 1]
    return checkout


def closure(entry: str, root: Path = ROOT) -> list[str]:
    """Every file of this project that `entry` can import, itself included, without observers: sorted relative paths."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path in found or path.startswith(OBSERVERS):
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
        stages = stages_of(root)
        if name not in stages:
            raise ConfigError(f"dvc.yaml has no stage {name}; it has {', '.join(stages)}.")
        filled = json.loads(re.sub(r"\$\{([\w.]+)\}", lambda m: str(lookup(params, m[1])), json.dumps(stages[name])))
        deps = filled["deps"]
        code = [dep for dep in deps if dep.endswith((".py", ".html"))]
        return cls(name, code, [d for d in deps if d not in code], filled.get("params", []), filled.get("outs", []))


def stages_of(root: Path) -> dict[str, Any]:
    """The stages of a checkout as its dvc.yaml writes them; to be read only."""
    return _stages((root / "dvc.yaml").read_text())


@functools.lru_cache(maxsize=1)  # a study asks for every stage of every cell
def _stages(text: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(text)["stages"]


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
            pin = name.startswith("data/inputs/")
            remedy = "`python -m vtp pin` writes it" if pin else f"`dvc repro {stage.name}` makes what it needs"
            raise BrokenArtifact(f"{path} is missing; {remedy}.")
        inputs[name] = digest(path)
    what = {
        "code": {name: digest(root / name) for name in stage.code},
        "params": {key: lookup(params, key) for key in stage.parameters},
        "inputs": inputs,
    }
    return json.loads(json.dumps(what))  # as it is read back: JSON knows no tuples


def fingerprint(what: dict[str, Any]) -> str:
    """16 hexadecimal digits of the ingredients."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def without_length(what: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ingredients of a training up to its cool-down: all but its `steps` and the `cooldown` of its optimizers."""

    def cut(table: Any, *names: str) -> Any:
        return {key: value for key, value in table.items() if key not in names} if isinstance(table, dict) else table

    sections = {
        key: {name: cut(value, "cooldown") for name, value in cut(section, "steps").items()}
        if isinstance(section, dict)
        else section
        for key, section in what["params"].items()
    }
    return what | {"params": sections}


def differences(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between two ingredients, a phrase each: names of files, and keys with both values."""
    found: list[str] = []
    for kind, new in now.items():
        old = before.get(kind, {})
        found += _changes(old, new) if kind == "params" else [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return found


def _changes(before: dict[str, Any], now: dict[str, Any], above: str = "") -> Iterator[str]:
    """`key (old, now new)` for every single value that differs, however deep."""
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{above}{name}.")
        elif old != new:
            yield f"{above}{name} ({old}, now {new})"


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
    with aside(file) as temporary, temporary.open("w") as out:
        yaml.dump(tree, out)
    return file.read_text() != before


if __name__ == "__main__":
    write_deps()
