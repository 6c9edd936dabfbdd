"""What a training writes, and that no failure of it reaches the training."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tracking.made_up import PARAMETERS, begin
from vtp.config import ROOT
from vtp.tracking import Track, flatten, publish


def lines(main: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (main / "runs" / "spool" / name).read_text().splitlines()]


def test_each_record_is_a_line(tmp_path: Path, alone: list[Path]) -> None:
    with begin(tmp_path) as track:
        assert alone == []  # nothing to upload yet
        track.scalars(7, {"loss": 0.5, "clip": np.float32(2)})
        assert alone == [tmp_path]
        track.parameters({"optimizer": {"lr": 1e-3}})
        track.final({"psnr": 21.5})
    about, *rest = lines(tmp_path, "pretrain-abc-0000.jsonl")
    assert about["kind"] == "open"
    assert about["value"] == {
        "stage": "pretrain",
        "key": "abc",
        "variant": "f" * 16,
        "run_name": "demo",
        "tags": {"host": "here"},
        "parameters": {"seed": 0, "dit.width": 64, "dit.betas": [0.9, 0.95], "dit.path": None},
    }
    assert [(r["kind"], r["key"], r["value"], r["step"]) for r in rest] == [
        ("scalar", "loss", 0.5, 7),
        ("scalar", "clip", 2.0, 7),
        ("parameter", "optimizer.lr", 1e-3, 0),
        ("final", "psnr", 21.5, 0),
        ("end", "status", "FINISHED", 0),
    ]
    assert all(abs(r["ts"] / 1000 - time.time()) < 60 for r in rest)
    assert alone == [tmp_path]


def test_records_are_there_before_the_run_ends(tmp_path: Path, alone: list[Path]) -> None:
    track = begin(tmp_path)
    for step in range(3):
        track.scalars(step, {"loss": 1.0})
        assert len(lines(tmp_path, "pretrain-abc-0000.jsonl")) == 2 + step
    track.close()


def test_a_picture_is_a_png_and_a_line(tmp_path: Path, alone: list[Path]) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with begin(tmp_path) as track:
        track.picture("samples/ema", pixels, 3)
    record = lines(tmp_path, "pretrain-abc-0000.jsonl")[1]
    assert (record["kind"], record["key"], record["step"]) == ("picture", "samples/ema", 3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "runs" / "spool" / record["value"])), pixels)


def test_a_resumed_stage_gets_a_file_of_its_own(tmp_path: Path, alone: list[Path]) -> None:
    first, second, other = begin(tmp_path), begin(tmp_path), begin(tmp_path, key="def")
    for track in (first, second, other):
        track.close()
    names = sorted(path.name for path in (tmp_path / "runs" / "spool").glob("*.jsonl"))
    assert names == ["pretrain-abc-0000.jsonl", "pretrain-abc-0001.jsonl", "pretrain-def-0000.jsonl"]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_end_of_the_block_decides_the_status(
    tmp_path: Path, alone: list[Path], error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), begin(tmp_path):
        raise error
    assert lines(tmp_path, "pretrain-abc-0000.jsonl")[-1]["value"] == status


def use_everything(track: Track) -> None:
    track.scalars(0, {"loss": 1.0})
    track.picture("p", np.zeros((2, 2, 3), np.uint8), 0)
    track.parameters({"a": 1})
    track.final({"psnr": 1.0})
    track.close()
    track.close()


def test_off_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTP_TRACKING", "off")
    use_everything(begin(tmp_path))
    publish(tmp_path, "f" * 16, PARAMETERS, {"a": {"b": 1.0}})
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("vtp.dist.rank", lambda: 1)
    caplog.set_level(logging.INFO)
    track = begin(tmp_path)
    bar = track.bar(1)
    bar.advance(8, 1.0)
    bar.close()
    use_everything(track)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_flatten_joins_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}, ".") == {"a.b.c": 1, "a.d": [2], "e": None}


# What goes wrong stays here


def test_a_checkout_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs").write_text("in the way")
    use_everything(begin(tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_broken_call_is_one_warning(tmp_path: Path, alone: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with begin(tmp_path) as track:
        track.picture("float", np.zeros((2, 2, 7)), 0)
        track.scalars(1, {"loss": "not a number"})  # type: ignore[dict-item]
        track.scalars(2, {"loss": 2.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [record["step"] for record in lines(tmp_path, "pretrain-abc-0000.jsonl")] == [0, 2, 0]


def test_training_loads_no_mlflow(tmp_path: Path) -> None:
    text = "import sys, vtp.tracking, vtp.tracking.upload; print([m for m in ('mlflow', 'torch', 'PIL') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
