"""Variants of the pipeline through DVC: queued, in a copy, on a second machine; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.clones import TINY, change, environment, sh
from tests.waiting import wait_for
from vtp.config import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.trap]


def rows(folder: Path) -> dict[str, dict]:
    """Of every experiment that `dvc exp show` knows, its name and what it says."""
    said = sh(folder, "dvc", "exp", "show", "--json")
    shown = json.loads(said[said.index("[") : said.rindex("]") + 1])
    return {
        experiment["name"]: experiment["revs"][0]
        for baseline in shown
        for experiment in baseline.get("experiments") or ()
        if experiment.get("name")
    }


def wait_for_queue(folder: Path, *names: str) -> None:
    """Until these experiments, whatever others there were, have succeeded."""

    def states() -> set[str]:
        said = sh(folder, "dvc", "queue", "status")
        return {re.search(rf"\b{name}\b.*\b(\w+)\s*$", said, re.MULTILINE)[1] for name in names}

    wait_for(lambda: not {"Queued", "Running"} & states(), pause=2)
    assert states() == {"Success"}


def test_a_queued_grid_finishes_unattended_and_shares_its_stages(project):
    before = {stage: set((project / "runs" / stage).iterdir()) for stage in ("prepare", "pretrain")}
    sh(project, "dvc", "exp", "run", "--queue", "-n", "grid", "-S", "pretrain.objective=ae,clip+ae")
    sh(project, "dvc", "queue", "start")
    wait_for_queue(project, "grid-1", "grid-2")
    found = rows(project)
    assert {"grid-1", "grid-2"} <= set(found)
    objectives = {found[name]["data"]["params"]["params.yaml"]["data"]["pretrain"]["objective"] for name in ("grid-1", "grid-2")}
    assert objectives == {"ae", "clip+ae"}
    # State of both lies here, not in the copies, which are gone; what they share was not made again.
    new = {stage: set((project / "runs" / stage).iterdir()) - there for stage, there in before.items()}
    assert [(folder / "finished.json").exists() for folder in new["pretrain"]] == [True, True]
    assert not new["prepare"]
    sh(project, "dvc", "exp", "apply", "grid-1")
    assert "Running stage" not in sh(project, "dvc", "repro")
    sh(project, "dvc", "plots", "diff", "HEAD", "grid-1")
    page = (project / "dvc_plots" / "index.html").read_text()
    assert not re.search(r"https?://", page)  # it must show without a network
    shown = re.findall(r'<img [^>]*src="([^"]+)"', page)
    assert len(shown) >= 14
    assert all((project / "dvc_plots" / name).is_file() for name in shown)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle.size=x", "Could not override 'modle.size'"),
        ("model.size=huge", "huge"),
        ("pretrain.steps=ten", "pretrain.steps must be a whole number, not 'ten'"),
    ],
)
def test_a_wrong_value_is_refused_in_readable_words(project, override, words):
    said = sh(project, "dvc", "exp", "run", "-S", override, ok=False)
    assert words in said
    assert "Traceback" not in said


def test_what_dvc_lacks_is_said_as_the_documents_say(project, tmp_path):
    """No commit, no environment, a module that git does not know: the messages that docs/experiments.md explains."""
    bare = tmp_path / "bare"
    for name in sh(project, "git", "ls-files").splitlines():
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, bare / name)
    sh(bare, "git", "init", "-q", "-b", "main")
    documented = (ROOT / "docs" / "experiments.md").read_text()
    said = sh(bare, "dvc", "exp", "run", "prepare", ok=False)
    assert "Empty git repo" in said
    dvc = shutil.which("dvc", path=environment()["PATH"])
    bin_only = tmp_path / "bin"
    bin_only.mkdir()
    for tool in ("sh", "git"):
        (bin_only / tool).symlink_to(shutil.which(tool))
    shell = {"SHELL": str(bin_only / "sh"), "LC_ALL": "C"}  # which DVC asks for, and whose words they are
    said = sh(bare, dvc, "repro", "prepare", ok=False, PATH=str(bin_only), **shell)
    assert re.search("python: (command )?not found", said)  # the second in bash, which may be called sh
    module, user = project / "vtp" / "data" / "made_up.py", project / "vtp" / "data" / "prepare.py"
    module.write_text("")
    user.write_text(user.read_text() + "\nimport vtp.data.made_up  # noqa: E402\n")
    said = sh(project, "dvc", "exp", "run", "--temp", "prepare", ok=False)
    assert "No module named 'vtp.data.made_up'" in said
    for words in ("Empty git repo", "python: not found", "No module named"):
        assert words in documented


def test_a_second_machine_pulls_and_runs_nothing(project, tmp_path):
    sh(project, "dvc", "remote", "add", "-f", "-d", "store", str(tmp_path / "store"))
    sh(project, "dvc", "push")
    second = tmp_path / "second"
    sh(tmp_path, "git", "clone", "-q", str(project), str(second))
    sh(second, "dvc", "remote", "add", "-f", "-d", "store", str(tmp_path / "store"))
    sh(second, "dvc", "pull")
    assert "Running stage" not in sh(second, "dvc", "repro")


def test_a_neutral_edit_is_committed_without_a_run(project):
    file = project / "vtp" / "models" / "encoder.py"
    file.write_text(file.read_text() + "# says nothing new\n")
    assert "encoder.py" in sh(project, "dvc", "status")
    sh(project, "dvc", "commit", "-f")
    assert "Running stage" not in sh(project, "dvc", "repro")


def test_comments_of_the_parameters_survive_an_experiment(project):
    before = re.findall("#.*", (project / "params.yaml").read_text())
    sh(project, "dvc", "exp", "run", "-n", "commented", "-S", "seed=0", "-S", "run.log_every=1", "prepare")
    assert re.findall("#.*", (project / "params.yaml").read_text()) == before
    sh(project, "git", "checkout", "-q", "params.yaml")
    sh(project, "dvc", "exp", "apply", "commented")
    assert "log_every: 1\n" in (project / "params.yaml").read_text()
    assert re.findall("#.*", (project / "params.yaml").read_text()) == before


def test_a_queued_variant_runs_the_code_it_was_queued_with(project):
    file = project / "stages" / "prepare.py"
    text = file.read_text()
    file.write_text(text.replace('run.metrics("prepare", counts)', 'run.metrics("prepare", counts | {"queued": 1})'))
    assert file.read_text() != text
    sh(project, "dvc", "exp", "run", "--queue", "-n", "snapshot", "prepare")
    file.write_text(text)
    # What an editable install amounts to: this checkout can be imported from everywhere.
    sh(project, "dvc", "queue", "start", PYTHONPATH=str(project))
    wait_for_queue(project, "snapshot")
    assert rows(project)["snapshot"]["data"]["metrics"]["reports/prepare.json"]["data"]["queued"] == 1


def test_a_launcher_starts_many_processes_and_dvc_sees_no_difference(project):
    change(project, *TINY, "pretrain.steps=2")
    launcher = "torchrun --standalone --nproc-per-node 2 -m"  # on a port of its own
    said = sh(project, "dvc", "repro", VTP_LAUNCH=launcher)
    assert f"launching {launcher} stages.pretrain" in said
    machines = [json.loads(path.read_text()) for path in (project / "runs" / "pretrain").glob("*/machine.json")]
    assert sorted(machine["ranks"] for machine in machines)[-1] == 2
    assert not list((project / "runs").glob("*/*/lock"))
    assert "Running stage" not in sh(project, "dvc", "repro")


def test_a_run_in_a_copy_tracks_into_the_main_checkout(project):
    sh(project, "dvc", "exp", "run", "--temp", "-n", "tracked", "-S", "pretrain.steps=3", "pretrain", VTP_TRACKING="on")
    database = project / "mlflow.db"
    wait_for(lambda: database.exists() and _stage_runs(database), pause=0.5)
    copies = project / ".dvc" / "tmp" / "exps"
    assert not list(copies.glob("**/mlflow.db"))
    assert not list((copies / "standalone").glob("tmp*"))
    wait_for(lambda: list((project / "mlartifacts").rglob("*.png")), pause=0.5)


def _stage_runs(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute("select count(*) from metrics").fetchone()[0]
