"""What a stage depends on, and what notices a change of it."""

from __future__ import annotations

import pytest

from vtp import provenance
from vtp.artifacts import BrokenArtifact, write_manifest
from vtp.config import ROOT, ConfigError, load


@pytest.mark.trap
def test_the_main_checkout_of_an_experiments_copy_is_found(tmp_path):
    copy = tmp_path / "project" / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    assert provenance.main_checkout(tmp_path / "project") == tmp_path / "project"
    assert provenance.main_checkout(tmp_path / "project" / ".dvc" / "tmp" / "exps" / "tmpabc") == tmp_path / "project"
    assert provenance.main_checkout(copy) == tmp_path / "project"
    assert provenance.main_checkout(tmp_path / "project" / "runs" / "copies" / "a-study") == tmp_path / "project"


def test_the_closure_follows_imports_inside_functions_and_leaves_observers_out(tmp_path):
    for name, text in {
        "stages/a.py": "def main():\n    from vtp import b\n    import vtp.tracking\n",
        "vtp/b.py": "from vtp.rooms.c import thing\n",
        "vtp/rooms/c.py": "import json\nthing = 1\n",
        "vtp/unused.py": "x = 1\n",
        "vtp/tracking/__init__.py": "from vtp import unused\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert provenance.closure("stages/a.py", tmp_path) == ["stages/a.py", "vtp/b.py", "vtp/rooms/c.py"]


def test_a_stage_lists_the_row_that_model_size_names():
    small = provenance.Stage.read("pretrain", load())
    large = provenance.Stage.read("pretrain", load(["model.size=large"]))
    assert "model.sizes.small.encoder" in small.parameters
    assert "model.sizes.large.encoder" in large.parameters


def test_an_unknown_stage_is_named():
    with pytest.raises(ConfigError, match="no stage nothing"):
        provenance.Stage.read("nothing", load())


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "file").write_text("content")
    write_manifest(tmp_path / "data" / "in", {})
    return provenance.Stage("made_up", ["code.py"], ["data/in"], ["seed", "dit"], ["data/out"])


def test_code_parameters_and_inputs_change_the_fingerprint(stage, tmp_path):
    def key(*overrides: str) -> str:
        return provenance.fingerprint(provenance.ingredients(stage, load(list(overrides)), tmp_path))

    first = key()
    assert key() == first
    assert key("run.workers=7") == first
    assert key("pretrain.steps=7") == first  # not listed by this stage
    assert key("dit.steps=7") != first
    (tmp_path / "code.py").write_text("x = 2\n")
    second = key()
    assert second != first
    (tmp_path / "data" / "in" / "file").write_text("changed")
    write_manifest(tmp_path / "data" / "in", {})
    assert key() not in (first, second)


def test_a_missing_input_is_named(stage, tmp_path):
    (tmp_path / "data" / "in" / "manifest.json").unlink()
    with pytest.raises(BrokenArtifact, match=r"dvc repro made_up"):
        provenance.ingredients(stage, load(), tmp_path)


def test_differences_name_single_values_and_files():
    before = {"code": {"a.py": "1", "b.py": "1"}, "params": {"seed": 0, "dit": {"optimizer": {"rate": 1, "clip": 2}}}}
    now = {"code": {"a.py": "1", "b.py": "2"}, "params": {"seed": 0, "dit": {"optimizer": {"rate": 3, "clip": 2}}}}
    assert provenance.differences(before, now) == ["b.py", "dit.optimizer.rate (1, now 3)"]


@pytest.mark.trap
def test_no_stage_imports_torch_or_mlflow_before_it_works():
    import subprocess
    import sys

    code = """
import importlib, sys, yaml
for name in yaml.safe_load(open("dvc.yaml"))["stages"]:
    importlib.import_module(f"stages.{name}")
    print(name, [m for m in ("torch", "mlflow", "pandas", "numpy", "matplotlib") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    said = dict(line.split(maxsplit=1) for line in out.stdout.splitlines())
    assert len(said) >= 10
    assert set(said.values()) == {"[]"}
