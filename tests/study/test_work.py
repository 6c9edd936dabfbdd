"""Working through a study: skipping, marking, stopping, and one at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.study.test_plan import planned
from tests.waiting import PATIENCE, wait_for
from vtp.artifacts import MANIFEST, save_json
from vtp.config import ROOT
from vtp.lock import Held, Lock
from vtp.reporting.pictures import save_png
from vtp.study import work
from vtp.study.plan import Cell
from vtp.study.process import Failure, Outcome, Programs, Stopped, command
from vtp.study.records import Records
from vtp.typed import ConfigError


class Stub:
    """Runs nothing, and ends as it is told to."""

    def __init__(self, folder, ends: dict[str, Exception] | None = None) -> None:
        self.folder, self.ends = folder, ends or {}
        self.ran: list[str] = []
        self.opened = self.stopped = 0

    def open(self) -> None:
        self.opened += 1

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None: ...

    def run(self, cell: Cell) -> Outcome:
        self.ran.append(cell.name)
        if cell.name in self.ends:
            raise self.ends[cell.name]
        outs = {}
        for stage in ("evaluate_tokenizer", "evaluate_generation"):
            outs[stage] = self.folder / stage
            save_png(outs[stage] / "strip.png", np.zeros((4, 6, 3), dtype=np.uint8))
        save_json(outs["evaluate_tokenizer"] / MANIFEST, {"metric_network": "ab12"})
        return Outcome({"gfd": 3.0, "gfd_unguided": 5.0, "rfd": 1.0, "pretrain_flops": 1e12, "psnr": 20.0, "other": 1}, outs)


@pytest.fixture
def go(tmp_path):
    records = Records(tmp_path / "records")

    def run(ends: dict[str, Exception] | None = None, *, retry: bool = False, **changes: object) -> Stub:
        runner = Stub(tmp_path / "outs", ends)
        work.run(planned(tmp_path, **changes), records, runner, Lock(tmp_path / "lock"), retry=retry)
        return runner

    run.records = records  # type: ignore[attr-defined]
    return run


def test_every_cell_gets_a_record_with_its_place_and_its_numbers(go, tmp_path):
    assert len(go().ran) == 4
    found = {record.cell: record for record in go.records.all()}
    assert set(found) == {"ae_10", "ae_30", "clip+ae_10", "clip+ae_30"}
    record = found["clip+ae_30"]
    assert (record.objective, record.pretrain_steps, record.dataset, record.status) == ("clip+ae", 30, "scenes", "done")
    assert (record.gfd, record.gfd_guided, record.rfd, record.pretrain_flops) == (5.0, 3.0, 1.0, 1e12)
    assert (record.zero_shot_top1, record.metric_network) == (None, "ab12")
    keys = set(json.loads((tmp_path / "records" / "ae_10.json").read_text()))
    assert {"pretrain_flops", "encoder", "decoder", "data_fraction", "seed", "linear_probe_top1", "psnr"} <= keys
    assert go.records.picture("ae_10").exists()


def test_a_second_call_does_nothing(go):
    go()
    again = go()
    assert again.ran == []
    assert again.opened == 0


def test_what_diverges_is_marked_and_the_others_go_on(go):
    diverged = {"ae_30": Failure("pretrain: step 3: l1 is nan.", diverged=True)}
    assert len(go(diverged).ran) == 4
    marked = next(record for record in go.records.all() if record.cell == "ae_30")
    assert (marked.status, marked.message, marked.gfd) == ("diverged", "pretrain: step 3: l1 is nan.", None)
    assert go().ran == []
    assert go(retry=True).ran == ["ae_30"]


def test_a_record_names_no_place_on_the_machine_that_failed():
    assert (
        str(Failure("pretrain: l1 is nan.  (details: /home/me/runs/pretrain.traceback)", diverged=True)) == "pretrain: l1 is nan."
    )


def test_what_failed_is_tried_again_next_time(go):
    go({"clip+ae_10": Failure("out of memory", diverged=False)})
    assert go().ran == ["clip+ae_10"]
    assert go().ran == []


def test_a_study_that_is_stopped_goes_on_where_it_was(go):
    with pytest.raises(Stopped):
        go({"clip+ae_10": Stopped()})
    assert go().ran == ["clip+ae_10", "clip+ae_30"]


def test_a_changed_plan_runs_again(go):
    go()
    changed = {"pretrain.optimizer.cooldown": 5}
    assert len(go(set=changed).ran) == 4
    assert go(set=changed).ran == []


def test_two_studies_at_once_are_refused(go, tmp_path):
    with Lock(tmp_path / "lock").held(), pytest.raises(Held, match=f"is held by process {os.getpid()}"):
        go()
    assert len(go().ran) == 4


def test_a_file_that_is_no_record_is_named(go, tmp_path):
    go()
    (tmp_path / "records" / "ae_10.json").write_text('{"cell": "ae_10"}')
    with pytest.raises(ConfigError, match=r"ae_10\.json is no record of a study: study is missing"):
        go()


def test_records_come_back_as_they_were(go):
    go()
    record = go.records.all()[0]
    changed = dataclasses.replace(record, seconds=1.5)
    go.records.save(changed)
    assert go.records.all()[0] == changed


def test_the_state_in_words(go, tmp_path):
    study = planned(tmp_path)
    assert work.state(study, go.records) == "4 waiting"
    go({"ae_30": Failure("nan", diverged=True)})
    assert work.state(study, go.records) == "3 done, 1 diverged"


def test_a_program_is_watched_and_its_last_words_are_kept(tmp_path):
    programs, words = Programs(), [sys.executable, "-c", "import sys; print('first'); print('last'); sys.exit(65)"]
    assert programs.run(command(words, tmp_path), tmp_path / "log", "a cell") == (65, "last")
    assert programs.run(command([*words[:2], "pass"], tmp_path), tmp_path / "log", "another") == (0, "")
    assert "== a cell\nfirst\nlast\n\n== another" in (tmp_path / "log").read_text()


def test_a_signal_reaches_the_program_and_waits_for_it_to_save(tmp_path):
    child = (
        "import signal, sys, time, pathlib\n"
        "def save(*_): pathlib.Path('saved').write_text(''); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path('ready').write_text(''); time.sleep(600)"
    )
    parent = f"""
import pathlib, sys
from tests.study.test_plan import planned
from vtp import stopping
from vtp.lock import Lock
from vtp.study import work
from vtp.study.process import Programs, command
from vtp.study.records import Records

class Child(Programs):
    def open(self): pass
    def close(self): pass
    def run(self, cell):
        super().run(command([sys.executable, "-c", {child!r}], pathlib.Path(".")), pathlib.Path("log"), cell.name)

stopping.leave_at_once()
work.run(planned(pathlib.Path(".")), Records(pathlib.Path("records")), Child(), Lock(pathlib.Path("lock")), retry=False)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=environment)
    wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "records").exists()
