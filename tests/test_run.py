"""One execution of a stage: resumable state, what is adopted or begun afresh, launchers, and errors in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from tests.waiting import PATIENCE
from vtp import provenance
from vtp import run as runs
from vtp.artifacts import read_manifest, write_manifest
from vtp.config import ROOT, ConfigError, load
from vtp.provenance import Stage


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with one stage, `train`: one code file, one input, the parameters `seed` and `dit`."""
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "data" / "in").mkdir(parents=True)
    (tmp_path / "data" / "in" / "file").write_text("content")
    write_manifest(tmp_path / "data" / "in", {})
    GIVEN.clear()
    stage = Stage("train", ["code.py"], ["data/in"], ["seed", "dit"], ["data/out"])
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "_overrides", lambda: GIVEN)
    monkeypatch.setattr(runs, "main_checkout", lambda: tmp_path)
    monkeypatch.setattr(runs.Stage, "read", lambda name, params: stage)
    original = provenance.ingredients
    monkeypatch.setattr(runs, "ingredients", lambda stage, params, root=tmp_path: original(stage, params, tmp_path))
    return tmp_path


GIVEN: list[str] = []  # the overrides of the command line


class Interrupted(Exception):
    """Stands for the machine being pulled away."""


def train(*overrides: str, to: int | None = None) -> runs.Run:
    """One call of the stage; `to`: it is killed after that step's checkpoint."""
    GIVEN[:] = overrides
    with runs.open_run("train", load(GIVEN)) as run:
        if to is not None:
            (run.work / "checkpoints" / f"step-{to:08d}").mkdir(parents=True)
            raise Interrupted
        with run.out() as folder:
            (folder / "weights").write_text("trained")
    return run


def killed(*overrides: str, to: int = 10) -> str:
    """Key of a run that is killed."""
    with pytest.raises(Interrupted):
        train(*overrides, to=to)
    return runs.Run("train", load(list(overrides))).key


def test_the_same_work_goes_on_and_is_then_finished(project):
    key = killed()
    run = train()
    assert run.key == key
    assert (run.work / "checkpoints" / "step-00000010").is_dir()
    assert (run.work / "finished.json").exists()
    assert read_manifest(project / "data" / "out")["stage"] == "train"


@pytest.mark.trap
def test_other_work_on_the_same_inputs_stops_and_says_what_differs(project):
    key = killed()
    (project / "code.py").write_text("x = 2\n")
    with pytest.raises(ConfigError) as caught:
        train("dit.steps=7")
    message = str(caught.value)
    assert f"{key} (its step 10) differs in code.py, dit.steps ({load().dit.steps}, now 7)" in message
    assert f"run.adopt={key} goes on from it, run.fresh=true starts afresh" in message
    assert not (project / "data" / "out").exists()


def test_adopted_work_goes_on_and_the_outs_say_so(project):
    key = killed()
    run = train("dit.steps=7", f"run.adopt={key}")
    assert (run.work / "checkpoints" / "step-00000010").is_dir()
    manifest = read_manifest(project / "data" / "out")
    assert manifest["adopted"] == key
    assert manifest["adopted_differences"] == [f"dit.steps ({load().dit.steps}, now 7)"]
    train("dit.steps=8")  # nothing is left to decide


def test_a_fresh_start_leaves_the_other_work_where_it_is_and_is_not_asked_again(project):
    key = killed()
    run = train("dit.steps=7", "run.fresh=true")
    assert not (run.work / "checkpoints").exists()
    assert (project / "runs" / "train" / key / "checkpoints" / "step-00000010").is_dir()
    train("dit.steps=8")
    train()  # and who goes back to it goes on from it


def test_a_variant_beside_unfinished_others_starts_without_asking_and_they_stay_unfinished(project):
    key = killed()
    run = train("dit.steps=7", "run.alongside=true")
    assert (run.work / "finished.json").exists()
    assert not (run.work.parent / key / "superseded.json").exists()
    with pytest.raises(ConfigError, match=key):
        train("dit.steps=8")


def test_runs_share_a_prefix_if_their_length_is_all_that_differs(project):
    here = {"threads": 1}
    mine = train().shared(here)
    assert train("dit.steps=7", "dit.optimizer.cooldown=3").shared(here) == mine
    assert train("dit.steps=7", "dit.optimizer.warmup=3").shared(here) != mine
    assert train("dit.batch=7").shared(here) != mine
    assert train("seed=7").shared(here) != mine
    assert train().shared({"threads": 2}) != mine
    (project / "code.py").write_text("x = 2\n")
    assert train().shared(here) != mine


def test_only_the_length_of_the_training_itself_is_left_out():
    ramp = {"start": 0.9, "end": 1.0, "steps": 40}
    section = {"steps": 5, "optimizer": {"rate": 1.0, "cooldown": 2}, "ssl": {"teacher_momentum": ramp}}
    what = {"code": {}, "params": {"pretrain": section, "seed": 0}, "inputs": {}}
    assert provenance.without_length(what)["params"] == {
        "pretrain": {"optimizer": {"rate": 1.0}, "ssl": {"teacher_momentum": ramp}},
        "seed": 0,
    }
    assert section["steps"] == 5


def test_a_fresh_start_of_the_same_work_forgets_its_checkpoints(project):
    killed()
    assert not (train("run.fresh=true").work / "checkpoints").exists()


def test_finished_work_and_work_on_other_inputs_are_nobodys_business(project):
    train()
    killed("dit.steps=7")
    (project / "data" / "in" / "file").write_text("other")
    write_manifest(project / "data" / "in", {})
    train("dit.steps=9")


def test_work_that_somebody_is_at_is_not_abandoned(project):
    killed()
    with runs.open_run("train", load()) as run:
        assert run.work.exists()
        train("dit.steps=7")
        GIVEN.clear()  # the other process had a command line of its own


def test_an_adopted_name_that_is_no_run_is_refused(project):
    with pytest.raises(ConfigError, match=r"run\.adopt=nothing names no run below"):
        train("run.adopt=nothing")


def test_adopting_and_starting_afresh_exclude_each_other(project):
    with pytest.raises(ConfigError, match=r"exclude each other"):
        train("run.adopt=abc", "run.fresh=true")


def edit(project, what: str) -> None:
    """Change something that a run of the stage depends on."""
    match what:
        case "code":
            (project / "code.py").write_text("x = 3\n")
        case "parameter":
            GIVEN[:] = ["dit.steps=7"]
        case "input":
            (project / "data" / "in" / "file").write_text("other")
            write_manifest(project / "data" / "in", {})


@pytest.mark.trap
@pytest.mark.parametrize("what", ["code", "parameter", "input"])
@pytest.mark.parametrize("when", ["before the out", "in the out", "after the out"])
def test_an_edit_while_a_stage_runs_is_noticed_before_it_counts(project, what, when):
    def work() -> None:
        with runs.open_run("train", load(GIVEN)) as run:
            if when == "before the out":
                edit(project, what)
            with run.out() as folder:
                (folder / "weights").write_text("trained")
                if when == "in the out":
                    edit(project, what)
            if when == "after the out":
                edit(project, what)

    with pytest.raises(ConfigError, match=r"(code\.py|dit\.steps \(.*, now 7\)|data/in) changed while train ran"):
        work()
    assert (project / "data" / "out").exists() is (when == "after the out")
    assert not list((project / "runs").rglob("finished.json"))


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VTP_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_outside_of_a_training_ends_it_at_once(number, status):
    code = """
        import time
        from vtp.run import entry
        def main(params):
            try:
                print("working", flush=True)
                time.sleep(60)
            finally:
                print("tidied", flush=True)
        entry(main)
    """
    process = python(code)
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert out == "tidied\n"
    assert "Traceback" not in err
    assert ("interrupted; the same command goes on" in err) == (number == signal.SIGINT)


LAUNCHED = """
    import json, os, sys
    import vtp.run as runs
    from pathlib import Path
    from vtp.provenance import Stage
    runs.Stage.read = lambda name, params: Stage("made_up", [], [], ["seed"], ["data/made_up"])
    runs.main_checkout = lambda: Path(os.environ["MAIN"])
    def main(params):
        with runs.open_run("made_up", params, launchable=True) as run:
            print(json.dumps({"rank": os.environ.get("RANK"), "locked": (run.work / "lock").exists(), "argv": sys.argv[1:]}))
    runs.entry(main)
"""


def test_a_launcher_takes_the_place_of_the_stage_and_keeps_its_lock(tmp_path):
    # The launcher shows its command, whether it is still the same process, and whether the lock came along.
    launcher = tmp_path / "launcher"
    launcher.write_text(
        f"#!{sys.executable}\nimport fcntl, json, os, sys\n"
        "lock = open(os.environ['VTP_LOCK'])\n"
        "try:\n    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB); free = True\nexcept BlockingIOError:\n    free = False\n"
        "holder = json.loads(open(os.environ['VTP_LOCK']).read())['pid']\n"
        "print(json.dumps({'argv': sys.argv[1:], 'same': holder == os.getpid(), 'free': free}))\n"
    )
    launcher.chmod(0o755)
    process = python(LAUNCHED, "run.workers=2", MAIN=str(tmp_path), VTP_LAUNCH=f"{launcher} --ranks 2 -m")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    said = json.loads(out)
    assert said["argv"] == ["--ranks", "2", "-m", "stages.made_up", "run.workers=2"]
    assert said["same"]
    # It is its own descriptor that holds it: another one of the same process cannot take it.
    assert not said["free"]


def test_a_launched_stage_does_not_launch_again_and_lets_the_lock_go_at_its_end(tmp_path):
    first = python(LAUNCHED, MAIN=str(tmp_path))
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, err
    work = next((tmp_path / "runs" / "made_up").iterdir())
    (work / "lock").write_text("{}")
    for rank in ("1", "0"):
        process = python(LAUNCHED, MAIN=str(tmp_path), VTP_LAUNCH="nothing", VTP_LOCK=str(work / "lock"), RANK=rank)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert json.loads(out)["locked"]
    assert not (work / "lock").exists()


def test_a_launcher_that_is_not_there_is_named(tmp_path):
    process = python(LAUNCHED, MAIN=str(tmp_path), VTP_LAUNCH="no-such-launcher -m")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "VTP_LAUNCH=no-such-launcher -m: there is no program no-such-launcher." in err
    assert "Traceback" not in err
    assert not list((tmp_path / "runs" / "made_up").glob("*/lock"))


def test_a_full_disk_is_one_line(tmp_path):
    code = """
        import errno, os, sys
        from pathlib import Path
        import vtp.run as runs
        def main(params):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/models.safetensors")
        sys.argv, folder = sys.argv[:1], sys.argv[1]
        runs.main_checkout = lambda: Path(folder)
        runs.entry(main)
    """
    process = python(code, str(tmp_path))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "No space left on device: '/somewhere/models.safetensors'. What was saved before is whole; mend this" in err
    assert "Traceback" not in err


def test_a_loading_process_that_was_killed_is_one_line(monkeypatch, capsys, tmp_path):
    def main(params):
        raise RuntimeError("DataLoader worker (pid 11851) is killed by signal: Killed. ")

    monkeypatch.setattr(sys, "argv", ["stages/pretrain.py"])
    monkeypatch.setattr(runs, "main_checkout", lambda: tmp_path)
    monkeypatch.setattr(runs.stopping, "leave_at_once", lambda: None)
    with pytest.raises(SystemExit):
        runs.entry(main)
    assert re.match(r"pretrain: a process that loads pictures was killed.*lower run\.workers", capsys.readouterr().err)


def test_runs_of_other_parameters_write_their_outs_apart(project, monkeypatch):
    monkeypatch.setattr(runs.Run, "check", lambda self: None)  # in a process each, both would find their own parameters
    one, two = (runs.Run("train", load([f"seed={seed}"])) for seed in (1, 2))
    for run in (one, two):
        run.work.mkdir(parents=True)
    (project / "data").mkdir(exist_ok=True)
    (project / "data" / ".out.0123456789abcdef.new").mkdir()  # of a run that was killed
    with runs.Lock(one.work / "lock").held(), one.out() as first:
        (first / "one").write_text("1")
        with runs.Lock(two.work / "lock").held(), two.out() as second:
            (second / "two").write_text("2")
        assert [path.name for path in (project / "data" / "out").iterdir() if path.name != "manifest.json"] == ["two"]
        assert (first / "one").exists()
    assert not list((project / "data").glob(".out*"))
    assert (project / "data" / "out" / "one").exists()


def test_a_training_that_diverged_has_an_exit_status_of_its_own(monkeypatch, capsys, tmp_path):
    from vtp.stopping import DIVERGED, NotFinite

    def diverges(params):
        raise NotFinite("step 3: clip is nan.")

    monkeypatch.setattr(sys, "argv", ["stages/pretrain.py"])
    monkeypatch.setattr(runs, "main_checkout", lambda: tmp_path)
    monkeypatch.setattr(runs.stopping, "leave_at_once", lambda: None)
    with pytest.raises(SystemExit) as caught:
        runs.entry(diverges)
    assert caught.value.code == DIVERGED == 65
    assert capsys.readouterr().err.startswith("pretrain: step 3: clip is nan.")


@pytest.mark.parametrize(
    ("stage", "settings", "remedy"),
    [
        ("train_dit", ["dit.batch=64"], "run.microbatch=32 instead of 64 takes 2 times less"),
        ("pretrain", ["run.microbatch=9"], "run.microbatch=3 instead of 9 takes 3 times less"),
        ("train_metric_network", ["evaluate.metric_network.batch=64"], "evaluate.metric_network.batch=32 instead of 64"),
        ("sample", ["sample.batch=256"], "sample.batch=128 instead of 256"),
        ("extract_latents", ["latents.batch=7"], "latents.batch=1 instead of 7"),
        ("evaluate_tokenizer", ["evaluate.batch=1"], "One picture at a time is too much already"),
    ],
)
def test_a_full_gpu_is_one_line_that_names_the_setting(stage, settings, remedy, monkeypatch, capsys, tmp_path):
    def main(params):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80 GiB")

    monkeypatch.setattr(sys, "argv", [f"stages/{stage}.py", *settings])
    monkeypatch.setattr(runs, "main_checkout", lambda: tmp_path)
    monkeypatch.setattr(runs.stopping, "leave_at_once", lambda: None)
    with pytest.raises(SystemExit) as ended:
        runs.entry(main)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{stage}: CUDA out of memory")
    assert remedy in line
