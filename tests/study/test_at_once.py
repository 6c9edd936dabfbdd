"""Several cells at the same time, on a small pipeline: what they share, what they leave each other, and how they end."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.study.test_direct import lay, ran
from tests.study.test_plan import planned
from tests.waiting import PATIENCE, wait_for
from vtp import stopping
from vtp.config import ConfigError
from vtp.lock import Lock
from vtp.study import commands, direct, shelf, work
from vtp.study.direct import Workshop
from vtp.study.process import Outcome, Programs, Stopped, command
from vtp.study.records import Record, Records
from vtp.study.shares import shares

GRAPH = {
    "first": ("pretrain", []),
    "evaluate_tokenizer": ("finetune_decoder", []),  # needs nothing here: to be done while somebody else is at `first`
    "last": ("dit", ["first"]),
    "evaluate_generation": ("dit", ["last", "evaluate_tokenizer"]),
    "report": ("dit", ["evaluate_generation"]),
}
TWO = {"objective": ["ae"], "pretrain_steps": [10, 30]}
"""Two cells that share no stage but the tokenizer's evaluation."""
LENGTHS = {"objective": ["ae"], "pretrain_steps": [10], "dit_steps": [300, 400]}
"""Two cells that also share `first`."""


@pytest.fixture
def go(tmp_path, monkeypatch) -> Callable[..., list[Record]]:
    """Runs a small study over stages that write down that they ran: its records, by cell."""
    monkeypatch.delenv("VTP_LAUNCH", raising=False)
    monkeypatch.setattr(direct, "ROOT", lay(tmp_path, GRAPH))
    monkeypatch.setattr(direct, "IMPORTS", ())

    def run(at_once: int = 2, **changes: object) -> list[Record]:
        study, records = planned(tmp_path, **changes), Records(tmp_path / "records")
        shop = run.shop = Workshop(direct.ROOT, study, at_once)  # type: ignore[attr-defined]
        work.run(study, records, shop, Lock(tmp_path / "lock"), retry=False, at_once=at_once)
        return records.all()

    return run


def body(folder: Path, stage: str, *lines: str) -> None:
    """What a stage does before it writes its out; `here` is the test's folder, `steps` the length of the cell's `first`."""
    head = (f"here, steps = pathlib.Path({str(folder)!r}), params['pretrain']['steps']", "import os, signal, time")
    (folder / f"{stage}.body").write_text("\n".join((*head, *lines)))


def until(condition: str) -> str:
    """Lines of a body that wait for something."""
    head = f"end = time.monotonic() + {PATIENCE}\nwhile not ({condition}):"
    return f"{head}\n    assert time.monotonic() < end, 'nobody came'\n    time.sleep(0.02)"


BOTH = ("(here / f'came-{steps}').touch()", until("len(list(here.glob('came-*'))) == 2"))
"""Lines that go on when the stage of another cell is there, too."""
SAVE = (
    "def save(*_): (here / f'saved-{steps}').touch(); sys.exit(75)",
    "signal.signal(signal.SIGTERM, save)",
    "(here / f'ready-{steps}').touch()",
    "time.sleep(0 if (here / f'saved-{steps}').exists() else 600)",
)
"""Lines of a training that never ends but when it is told to save, and then goes on next time."""


def ends(found: list[Record]) -> list[str]:
    return [record.status for record in found]


def test_what_cells_share_runs_once_and_meanwhile_the_others_do_something_else(go, tmp_path):
    body(tmp_path, "first", until("'evaluate_tokenizer' in (here / 'ran').read_text()"))
    assert ends(go(grid=LENGTHS)) == ["done", "done"]
    assert sorted(ran(tmp_path).split()) == [*["evaluate_generation"] * 2, "evaluate_tokenizer", "first", "last", "last"]


def test_cells_run_at_the_same_time(go, tmp_path):
    body(tmp_path, "last", *BOTH)
    assert ends(go(grid=TWO)) == ["done", "done"]


def test_records_are_those_of_one_after_another(go, tmp_path):
    alone = [dataclasses.replace(record, seconds=0) for record in go(1)]
    (tmp_path / "records").rename(tmp_path / "earlier")
    (direct.ROOT / "runs").rename(tmp_path / "runs")
    assert [dataclasses.replace(record, seconds=0) for record in go(3)] == alone
    assert len({record.rfd for record in alone}) == 4  # a number of all that went into a cell


def test_every_cell_at_work_has_a_log_of_its_own(go, tmp_path):
    body(tmp_path, "last", *BOTH, "print(steps)")
    go(grid=TWO)
    logs = [(direct.ROOT / "runs" / "studies" / f"small-{number}.log").read_text() for number in (1, 2)]
    assert sorted(text.partition("last\n")[2].split()[0] for text in logs) == ["10", "30"]


def test_a_bulky_out_stays_while_a_running_cell_uses_it(go, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "BULKY", ("last",))
    places = direct.ROOT / "runs" / "studies" / "stages" / "last"
    both = f"len(list(pathlib.Path({str(places)!r}).glob('[0-9a-f]*'))) == 2"
    body(tmp_path, "evaluate_generation", until(both), "pathlib.Path('data/last/manifest.json').read_text()")
    assert ends(go(grid=LENGTHS)) == ["done", "done"]
    body(tmp_path, "evaluate_generation")
    go(1, grid=LENGTHS | {"dit_steps": [500]})
    assert len(list(places.iterdir())) == 1


def test_a_shared_stage_that_fails_is_tried_by_the_next_cell(go, tmp_path):
    body(tmp_path, "first", "if not (here / 'once').exists(): (here / 'once').touch(); sys.exit('first: the GPU is full.')")
    found = go(grid=LENGTHS)
    assert sorted((record.status, record.message) for record in found) == [("done", ""), ("failed", "first: the GPU is full.")]
    assert ends(go(grid=LENGTHS)) == ["done", "done"]
    assert ran(tmp_path).split().count("first") == 1


def test_what_diverges_is_marked_and_the_others_go_on(go, tmp_path):
    body(tmp_path, "first", "if params['pretrain']['objective'] == 'ae': sys.exit(65)")
    assert [(record.cell, record.status) for record in go(3)] == [
        ("ae_10", "diverged"), ("ae_30", "diverged"), ("clip+ae_10", "done"), ("clip+ae_30", "done")
    ]  # fmt: skip


@pytest.fixture
def leaving():
    """Signals end this process as they do the command."""
    before = {number: signal.getsignal(number) for number in (*stopping.SIGNALS, signal.SIGINT)}
    stopping.leave_at_once()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job that a shell runs in the background is deaf to it
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, stopping.Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_lets_all_that_run_save_and_the_study_goes_on_next_time(go, tmp_path, leaving, number, raised):
    body(tmp_path, "last", *SAVE)
    grid = {"objective": ["ae"], "pretrain_steps": [10, 30, 50]}

    def interrupt() -> None:
        with suppress(AssertionError):  # the study must end in any case
            wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(raised):
        go(grid=grid)
    sender.join()
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-10", "saved-30"]
    assert not (tmp_path / "records").exists()
    (tmp_path / "saved-50").touch()
    assert ends(go(grid=grid)) == ["done"] * 3
    assert ran(tmp_path).split().count("first") == 3


def test_a_stage_that_was_stopped_stops_the_study_and_the_others_save(go, tmp_path):
    body(
        tmp_path,
        "last",
        "if steps == 10:",
        *(f"    {line}" for line in SAVE),
        until("(here / 'ready-10').exists()"),
        "sys.exit(75)",
    )
    with pytest.raises(Stopped):
        go(grid=TWO)
    assert [path.name for path in tmp_path.glob("saved-*")] == ["saved-10"]
    assert not (tmp_path / "records").exists()


def test_what_was_asked_to_stop_starts_nothing_more(tmp_path):
    programs = Programs()
    programs.stop()
    with pytest.raises(Stopped):
        programs.run(command(["touch", "made"], tmp_path), tmp_path / "log", "late")
    assert not (tmp_path / "made").exists()


def test_gpus_are_dealt_in_turn_and_of_those_that_are_listed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(5)] == ["0", "1", "0", "1", "0"]
    assert {share["OMP_NUM_THREADS"] for share in shares(5)} == {"3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(3)] == ["3", "GPU-abc", "3"]
    assert shares(1) == [{}]


@pytest.mark.parametrize("listed", ["", "-1", None])
def test_a_machine_without_gpus_shares_its_cores_alone(monkeypatch, listed):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    assert shares(3) == [{"OMP_NUM_THREADS": "5"}] * 3
    assert shares(40) == [{"OMP_NUM_THREADS": "1"}] * 40


def test_stages_see_their_share_of_the_machine(go, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    body(tmp_path, "last", *BOTH, "(here / f'gpu-{steps}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
    go(grid=TWO)
    assert sorted((tmp_path / f"gpu-{steps}").read_text() for steps in (10, 30)) == ["0", "1"]


@pytest.mark.parametrize(("workers", "cores", "share"), [(0, 64, 0), (1, 2, 1), (14, 2, 1), (14, 12, 4), (14, 64, 14)])
def test_loading_processes_are_as_many_as_there_are_cores_for(go, tmp_path, monkeypatch, workers, cores, share):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    go(3, grid=LENGTHS | {"dit_steps": [300]}, set={"pretrain.optimizer.cooldown": 4, "run.workers": workers})
    assert yaml.safe_load((go.shop.benches[0].copy / "params.yaml").read_text())["run"]["workers"] == share


def test_a_launcher_and_cells_at_once_exclude_each_other(go, monkeypatch):
    monkeypatch.setenv("VTP_LAUNCH", "torchrun --nproc-per-node 2 -m")
    with pytest.raises(ConfigError, match="VTP_LAUNCH spreads each stage over all GPUs, --at-once"):
        go()


def test_without_direct_the_command_names_the_queue_of_dvc(tmp_path):
    planned(tmp_path)
    ended = CliRunner().invoke(commands.study, ["run", str(tmp_path / "small.yaml"), "--at-once", "2"])
    assert isinstance(ended.exception, ConfigError)
    assert "--at-once=2 needs --direct" in str(ended.exception)
    assert "`dvc queue start --jobs 2`" in str(ended.exception)


class Hands:
    """Cells that end one after another, in the order of their start, as soon as as many run as can; whoever ran beside whom."""

    def __init__(self, at_once: int) -> None:
        self.at_once, self.running, self.beside = at_once, list[str](), list[list[str]]()
        self.changed = threading.Condition()
        self.left = 4

    def open(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def run(self, cell) -> Outcome:
        with self.changed:
            self.running.append(cell.name)
            self.beside.append(list(self.running))
            self.changed.notify_all()
            full = min(self.at_once, self.left)
            assert self.changed.wait_for(
                lambda: self.running[0] == cell.name and len(self.running) >= min(full, self.left), PATIENCE
            )
            self.left -= 1
            self.running.remove(cell.name)
            self.changed.notify_all()
        return Outcome({}, dict.fromkeys(("evaluate_tokenizer", "evaluate_generation"), Path("/nowhere")))


@pytest.mark.parametrize(
    ("at_once", "beside"),
    [
        (1, [["ae_10"], ["ae_30"], ["clip+ae_10"], ["clip+ae_30"]]),
        (2, [["ae_10"], ["ae_10", "clip+ae_10"], ["clip+ae_10", "ae_30"], ["ae_30", "clip+ae_30"]]),
        (3, [["ae_10"], ["ae_10", "clip+ae_10"], ["ae_10", "clip+ae_10", "ae_30"], ["clip+ae_10", "ae_30", "clip+ae_30"]]),
    ],
)
def test_cells_that_differ_in_length_only_wait_for_each_other_where_others_can_run(tmp_path, at_once, beside):
    hands = Hands(at_once)
    work.run(planned(tmp_path), Records(tmp_path / "records"), hands, Lock(tmp_path / "lock"), retry=False, at_once=at_once)
    assert hands.beside == beside


def test_cells_that_wait_for_one_teacher_begin_alike(tmp_path):
    grid = {"objective": ["vavae", "frozen", "kl-vae"], "pretrain_steps": [10]}
    vavae, frozen, convolutional = planned(tmp_path, grid=grid, teacher={"objective": "ssl+ae", "pretrain_steps": 30}).cells
    assert vavae.training == frozen.training != convolutional.training
    assert [cell.taught for cell in (vavae, frozen, convolutional)] == [True, True, False]


def test_the_time_that_is_left_counts_what_runs(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert work._left([], [], 4, 1) == ""
    assert work._left([120, 240], [], 2, 1) == " (about 6 min left)"
    assert work._left([120, 240], [940, 100], 3, 2) == " (about 6 min left)"  # 2 of 3 min, and one that is late
