"""Variants as DVC experiments: what is set, and how an experiment's end is read."""

from __future__ import annotations

import pytest

from tests.study.test_plan import planned
from vtp.config import ConfigError, load
from vtp.study import experiments
from vtp.study.experiments import Experiments
from vtp.study.process import Failure, Stopped

NOW = {"a": {"b": 1, "c": [1, 2], "t": {}}, "d": None, "e": "x"}


def test_only_what_differs_is_set():
    wanted = {"a": {"b": 2, "c": [1, 2], "t": {}}, "d": 1.5e-4, "e": "clip+ae"}
    assert experiments._changes(NOW, wanted) == ["a.b=2", "d=0.00015", 'e="clip+ae"']
    assert experiments._changes(NOW, NOW) == []


def test_values_survive_the_grammar_of_overrides():
    wanted = {
        "perceptual.net": "vgg",
        "evaluate.templates": ["{}", "a photo of a {}", "it's {}, one"],
        "data.train_samples": None,
        "pretrain.optimizer.betas": [0.8, 0.9],
        "dit.shift": False,
    }
    params = load([*experiments._changes({}, wanted), "data.source=parquet", "data.path=/x"])
    assert params.perceptual.net == "vgg"
    assert params.evaluate.templates == ("{}", "a photo of a {}", "it's {}, one")
    assert params.data.train_samples is None
    assert params.pretrain.optimizer.betas == (0.8, 0.9)
    assert params.dit.shift is False


def said(folder, text: str) -> Exception:
    folder.mkdir()
    runner = Experiments(folder, planned(folder))
    runner.log.parent.mkdir(parents=True)
    runner.log.write_text(f"\n== before\npretrain: old.\n\n== ae_10\n{text}\n")
    return runner._failure()


def test_how_an_experiment_ended(tmp_path):
    line = "ERROR: failed to reproduce 'pretrain': failed to run: python -m stages.pretrain, exited with"
    diverged = said(tmp_path / "a", f"pretrain: step 3: l1 is nan.\n{line} 65")
    assert isinstance(diverged, Failure)
    assert diverged.diverged
    assert str(diverged) == "pretrain: step 3: l1 is nan."
    failed = said(tmp_path / "b", f"pretrain: a file is missing.\n{line} 1")
    assert isinstance(failed, Failure)
    assert not failed.diverged
    assert isinstance(said(tmp_path / "c", f"{line} 75"), Stopped)
    assert str(said(tmp_path / "d", "ERROR: unexpected error - Empty git repo")) == "ERROR: unexpected error - Empty git repo"


def test_a_machine_without_dvc_or_git_is_told_of_the_other_way(tmp_path, monkeypatch):
    runner = Experiments(tmp_path, planned(tmp_path))
    with pytest.raises(ConfigError, match=r"no git repository.*--direct"):
        runner.open()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"no program dvc here.*--direct"):
        runner.open()


def test_what_dvc_cannot_bring_fails_the_cell_in_its_words(tmp_path):
    runner = Experiments(tmp_path, planned(tmp_path))
    runner.fetched.mkdir(parents=True)
    with pytest.raises(Failure, match=r"`dvc get` brought no reports of the experiment: ERROR: .*"):
        runner._get("reports", "HEAD")
