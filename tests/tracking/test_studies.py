"""Studies in MLflow: every record a run, once; what changed takes the place of what it was."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.study.test_report import RECORDS
from vtp.reporting.pictures import save_png
from vtp.study import report
from vtp.study.records import Records
from vtp.tracking import ui
from vtp.tracking.database import create_database
from vtp.tracking.runs import Runs
from vtp.tracking.studies import Entry, enter

pytestmark = pytest.mark.slow  # MLflow takes seconds to begin


@pytest.fixture(scope="module")
def main(tmp_path_factory) -> Path:
    """A checkout with a database, which takes MLflow longest; each test has a study of its own."""
    folder = tmp_path_factory.mktemp("main")
    create_database(folder)
    return folder


def runs(main: Path, study: str) -> dict[str, Any]:
    """The runs of a study that MLflow shows, by name; none has the name of another."""
    found = Runs(main, f"study {study}").all({"vtp.study": study})
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def files(main: Path, run: Any) -> list[str]:
    return sorted(file.name for file in (main / "mlartifacts" / run.info.run_id / "artifacts").rglob("*") if file.is_file())


def test_everything_that_records_say_is_in_mlflow_once(main, tmp_path):
    records = tmp_path / "study"
    kept = Records(records / "s")
    for record in RECORDS:
        kept.save(record)
    save_png(kept.picture("ae_300"), np.zeros((4, 6, 3), dtype=np.uint8))
    drawn = report.write(records, tmp_path / "study.md")
    assert report.track(main, records, drawn) == ["s"]
    first = runs(main, "s")
    assert set(first) == {record.cell for record in RECORDS} | {"figures"}
    run = first["ae_300"]
    assert run.data.params == {
        "objective": "ae",
        "pretrain_steps": "300",
        "pretrain_flops": "300000000000000.0",
        "encoder": "small",
        "decoder": "small",
        "data_fraction": "1.0",
        "dit_steps": "400",
        "seed": "0",
        "dataset": "scenes",
        "metric_network": "a" * 64,
    }
    assert run.data.metrics == {
        "rfd_before_gan": pytest.approx(2.5 / 3),
        "rfd": pytest.approx(2 / 3),
        "gfd": 15.5,
        "gfd_guided": 7.75,
        "linear_probe_top1": pytest.approx(0.19),
        "linear_probe_bottleneck_top1": 0.1,
        "psnr": 23.0,
        "pretrain_flops": 3e14,
        "seconds": 60.0,
    }
    assert files(main, run) == ["ae_300.png"]
    assert files(main, first["figures"]) == sorted(file.name for file in drawn)
    odd = first[RECORDS[-1].cell]
    assert (run.info.status, odd.info.status) == ("FINISHED", "FAILED")
    assert (odd.data.tags["status"], odd.data.tags["message"]) == ("diverged", "l1 is nan.")

    assert report.track(main, records, drawn) == ["s"]
    assert {name: run.info.run_id for name, run in runs(main, "s").items()} == {n: r.info.run_id for n, r in first.items()}
    with sqlite3.connect(main / "mlflow.db") as database:
        assert database.execute("select count(*) from metrics where run_uuid = ?", (run.info.run_id,)).fetchone() == (9,)

    kept.save(dataclasses.replace(RECORDS[1], gfd=11.0, pretrain_steps=301))
    (records / "s" / "vavae_300.json").unlink()
    assert report.track(main, records, drawn) == ["s"]
    second = runs(main, "s")
    assert {name for name in first if name not in second or first[name].info.run_id != second[name].info.run_id} == {
        "ae_300",
        "vavae_300",
    }
    assert "vavae_300" not in second
    assert (second["ae_300"].data.params["pretrain_steps"], second["ae_300"].data.metrics["gfd"]) == ("301", 11.0)

    pages = ui.studies(main)
    assert len(pages["study s"]) == len(RECORDS) - 1
    address = unquote(ui.comparison(pages["study s"], 5000)).partition("runs=")[2]
    shown = json.loads(address.partition("&")[0])
    assert set(shown) == {run.info.run_id for name, run in second.items() if name != "figures"}


def test_what_a_kill_left_by_half_is_entered_again_and_what_others_put_there_stays(main, monkeypatch, caplog):
    entries = [Entry("a", metrics={"x": 1.0}), Entry("b", metrics={"x": 2.0})]
    whole = Runs.status

    def dies(self: Runs, run: tuple[str, str | None], status: str, ts: int) -> None:
        monkeypatch.setattr(Runs, "status", whole)
        raise OSError("the machine is gone")

    monkeypatch.setattr(Runs, "status", dies)
    assert not enter(main, "half", entries)
    assert "the study half is not whole in MLflow (the machine is gone)" in caplog.text
    assert list(runs(main, "half")) == ["a"]
    foreign = Runs(main, "study half").create("mine", {}, 0)
    for _ in range(2):
        assert enter(main, "half", entries)
        assert {name: run.data.metrics for name, run in runs(main, "half").items()} == {"a": {"x": 1.0}, "b": {"x": 2.0}}
    assert Runs(main, "study half").client.get_run(foreign).info.lifecycle_stage == "active"


def test_two_studies_do_not_meet(main):
    for name in ("one", "two"):
        assert enter(main, name, [Entry("a", parameters={"objective": name})])
    assert [runs(main, name)["a"].data.params["objective"] for name in ("one", "two")] == ["one", "two"]
    assert list(ui.studies(main))[:2] == ["study two", "study one"]


def test_off_and_a_dead_server_are_no_errors(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VTP_TRACKING", "off")
    assert not enter(tmp_path, "s", [Entry("a")])
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("VTP_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert not enter(tmp_path, "s", [Entry("a")])
    assert "the study s is not whole in MLflow" in caplog.text
    assert "secret" not in caplog.text


def test_more_runs_than_mlflow_tells_at_once(main, monkeypatch):
    entries = [Entry(f"run-{number}") for number in range(5)]
    enter(main, "many", entries)
    search = MlflowClient.search_runs

    def few(self: MlflowClient, *given: Any, **words: Any) -> Any:
        return search(self, *given, **(words | {"max_results": 2}))

    monkeypatch.setattr(MlflowClient, "search_runs", few)
    assert len(runs(main, "many")) == 5
    enter(main, "many", entries)
    assert len(runs(main, "many")) == 5


def test_entries_that_differ_in_anything_have_other_keys(tmp_path):
    (tmp_path / "a.png").write_text("a")
    entry = Entry("a", files=[tmp_path / "a.png"])
    keys = {entry.key, Entry("b").key, Entry("a", status="FAILED").key, Entry("a", parameters={"x": 1}).key, Entry("a").key}
    keys |= {Entry("a", metrics={"x": 1.0}).key, Entry("a", tags={"x": "1"}).key}
    (tmp_path / "a.png").write_text("b")
    assert len(keys | {entry.key}) == 8
