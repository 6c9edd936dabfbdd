"""The rules of the house that a machine can keep."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

from vtp import provenance
from vtp.config import ROOT

FILES = sorted(p.relative_to(ROOT).as_posix() for folder in ("vtp", "stages") for p in (ROOT / folder).rglob("*.py"))
ROOT_FILES = {
    "config",
    "config_checks",
    "config_data",
    "typed",
    "origins",
    "seeding",
    "dist",
    "artifacts",
    "provenance",
    "lock",
    "stopping",
    "run",
    "schedules",
    "compiling",
}
LAYERS = {
    "data": 1,
    "models": 1,
    "objectives": 1,
    "metrics": 1,
    "reporting": 1,
    "sampling": 1,
    "tracking": 1,
    "tasks": 2,
    "evaluation": 2,
    "engine": 3,
    "use": 3,
    "recipes": 4,
    "study": 5,
    "stages": 4,
    "__main__": 4,
}
FROZEN = ("vtp.models.frozen", "vtp.models.metric_network")
WRAPPED = {
    "mlflow": {"vtp/tracking/runs.py", "vtp/tracking/database.py"},
    "torch.distributed": {"vtp/dist.py", "vtp/artifacts.py", "vtp/engine/parallel.py"},
    "timm": {"vtp/models/metric_network.py", "vtp/models/discriminator.py", "vtp/models/foundation.py"},
    "diffusers": {"vtp/models/convolutional.py"},
    "open_clip": {"vtp/data/captions.py"},
    "lpips": {"vtp/models/frozen.py"},
    "torch_fidelity": {"vtp/metrics/generation.py", "vtp/models/frozen.py"},
    "huggingface_hub": {"vtp/models/hub.py"},
    "pandera": {"vtp/data/contract.py"},
    "imagehash": {"vtp/data/duplicates.py"},
    "ray": {"vtp/data/executors.py"},
    "fsspec": {"vtp/data/remote.py"},
}


def imports(file: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module: str) -> str:
    """`vtp.models.encoder` lives in `models`, `vtp.dist` in the root, `stages.pretrain` in `stages`."""
    parts = module.split(".")
    if parts[0] == "stages":
        return "stages"
    return "root" if len(parts) < 2 or parts[1] in ROOT_FILES else parts[1]


def of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {of(file): file for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    here = room(of(file))
    for name in imports(file):
        if name.split(".")[0] not in ("vtp", "stages") or not resolves(name):
            continue
        there = room(name)
        if here in (there, "stages", "__main__") or there == "root" or file == "vtp/__init__.py":
            continue
        assert here != "root", f"{file} is a root file and imports {name}"
        if here == "metrics" and name.startswith(FROZEN):
            continue
        if here == "engine" and there == "tasks":
            assert name.startswith("vtp.tasks.base"), f"{file} knows a task: {name}"
        assert LAYERS[there] < LAYERS[here], f"{file} ({here}) must not import {name} ({there})"


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below that is more than a note to the type checker."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from executed(child)


def needed(file: str) -> set[str]:
    """Modules of the project that a file imports, in functions, too; `from a import b` means a.b where that is a module."""
    names: set[str] = set()
    for node in executed(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names & MODULES.keys()


def test_imports_go_in_no_circle():
    order = TopologicalSorter({module: needed(file) for module, file in MODULES.items()})
    order.prepare()  # CycleError names the modules of a circle


def resolves(name: str) -> bool:
    stem = ROOT / name.replace(".", "/")
    return stem.with_suffix(".py").is_file() or stem.is_dir()


def test_the_engine_knows_no_model_and_no_objective():
    for file in FILES:
        if file.startswith("vtp/engine/"):
            assert not [n for n in imports(file) if n.startswith(("vtp.models", "vtp.objectives", "vtp.metrics"))], file


def test_objectives_take_tensors_only():
    for file in FILES:
        if file.startswith("vtp/objectives/"):
            mine = {n for n in imports(file) if n.startswith("vtp")}
            assert mine <= {"vtp", "vtp.dist", "vtp.compiling", "vtp.compiling.compilable"}, f"{file} imports {mine}"
            assert "torch.nn" not in imports(file), f"{file} holds modules"


def test_models_know_no_training():
    for file in FILES:
        if file.startswith("vtp/models/"):
            assert not [n for n in imports(file) if n.startswith(("torch.optim", "vtp.schedules"))], file


@pytest.mark.parametrize(("library", "homes"), WRAPPED.items())
def test_each_library_is_wrapped_in_one_place(library, homes):
    users = {file for file in FILES if any(n == library or n.startswith(f"{library}.") for n in imports(file))}
    assert users <= homes


def test_params_is_seen_by_stages_only():
    allowed = ("stages/", "vtp/config.py", "vtp/config_checks.py", "vtp/origins.py", "vtp/provenance.py", "vtp/run.py")
    for file in FILES:
        if not file.startswith(allowed):
            assert "vtp.config.Params" not in imports(file), f"{file} takes the whole Params"


def test_no_module_draws_from_the_global_generator():
    # Inside functions that hand a generator on, the word `generator` stands in the same call.
    drawing = re.compile(r"torch\.(rand|randn|randint|randperm|bernoulli|multinomial)\(")
    for file in FILES:
        text = (ROOT / file).read_text()
        for match in drawing.finditer(text):
            depth, end = 0, match.end() - 1
            for end in range(match.end() - 1, len(text)):
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                if depth == 0:
                    break
            assert "generator" in text[match.start() : end], f"{file}: {text[match.start() : end]}"


@pytest.mark.trap
def test_code_dependencies_in_dvc_yaml_are_the_import_closures(tmp_path):
    copy = tmp_path / "dvc.yaml"
    copy.write_text((ROOT / "dvc.yaml").read_text())
    assert not provenance.write_deps(copy), "dvc.yaml is stale; run `make deps`"


@pytest.mark.trap
def test_stages_hang_together_as_planned():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert not [key for key in stage.get("params", []) if str(key).split(".")[0] == "run"], name
        listed = " ".join(map(str, stage.get("params", [])))
        assert not re.search(r"(^|[ .])(size|nfiles)( |$)", listed), name
    reachable = {name: set(stage["deps"]) for name, stage in stages.items()}
    assert "vtp/tasks/decoder.py" not in reachable["train_dit"]
    assert "vtp/models/discriminator.py" not in reachable["extract_latents"]
    assert "data/finetune_decoder" not in reachable["train_dit"] | reachable["sample"] | reachable["extract_latents"]
    assert "vtp/models/dit.py" not in reachable["pretrain"]


def test_the_report_reads_what_each_stage_writes():
    from stages.report import STAGES

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    written = {metric: name for name, stage in stages.items() if name != "report" for metric in stage.get("metrics", ())}
    assert {f"reports/{name}.json": stage for name, stage in STAGES.items()} == written


@pytest.mark.trap
def test_no_key_is_called_what_dvc_ignores():
    def keys(tree: object, path: str = ""):
        if isinstance(tree, dict):
            for key, value in tree.items():
                yield f"{path}{key}", key
                yield from keys(value, f"{path}{key}.")

    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    found = {path for path, key in keys(tree) if key in ("size", "nfiles")}
    assert found == {"model.size"}  # which no stage lists: stages list the row it names


def test_parts_stay_small():
    for file in FILES:
        text = (ROOT / file).read_text()
        assert len(text.splitlines()) <= (90 if file.startswith("stages/") else 440), file


def test_config_holds_no_values():
    trees = [ast.parse((ROOT / "vtp" / name).read_text()) for name in ("config.py", "config_data.py")]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            assert not [n for n in node.body if isinstance(n, ast.AnnAssign) and n.value is not None], node.name


def test_library_prints_nothing():
    for file in FILES:
        calls = [n for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], file


@pytest.mark.trap
def test_ignored_folders_are_anchored():
    for name in (".gitignore", ".dvcignore"):
        lines = Path(ROOT / name).read_text().split()
        assert not {"data/", "data", "runs/", "runs"} & set(lines), name


@pytest.mark.trap
def test_compiled_code_is_nothing_that_dvc_sees():
    assert {"__pycache__/", "*.py[cod]"} <= set((ROOT / ".dvcignore").read_text().split())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    folders = {dep for stage in stages.values() for dep in stage["deps"] if (ROOT / dep).is_dir()}
    assert not {folder for folder in folders if folder.startswith(("vtp", "stages"))}
