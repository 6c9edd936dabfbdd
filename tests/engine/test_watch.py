from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tasks.conftest import batch_of, build
from vtp.engine.checkpoint import Checkpoints
from vtp.engine.loop import fit
from vtp.engine.watch import SETTLING, Watch, told
from vtp.tracking import Track

CPU = torch.device("cpu")


def watch(folder: Path, profile: int | None = None) -> Watch:
    return Watch(CPU, 8, profile=profile, folder=folder)


class Clock:
    """Time that goes by when somebody says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("vtp.engine.watch.time", SimpleNamespace(perf_counter=lambda: self.seconds))

    def goes_on(self, seconds: float) -> None:
        self.seconds += seconds


def test_time_goes_to_whom_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seen = watch(tmp_path)

    def slow() -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(3):
            clock.goes_on(0.02)
            yield {}

    for _ in seen.batches(slow()):
        clock.goes_on(0.01)
        seen.mark("clip")
        clock.goes_on(0.03)
        seen.mark("l1_lpips")
        seen.step()
        clock.goes_on(0.04)  # between the last mark and the next batch: nobody's
    row = seen.row(0)
    assert row == {
        "system/milliseconds/clip": pytest.approx(10),
        "system/milliseconds/l1_lpips": pytest.approx(30),
        "system/images_per_second": pytest.approx(8 / 0.1),
        "system/data_wait_share": pytest.approx(0.2),
    }  # and no share of a peak: a processor's is not known
    assert told(row) == "clip 10 ms, l1_lpips 30 ms, 20% waiting for data"


def test_a_row_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    seen = watch(tmp_path)
    for _ in seen.batches(iter([{}, {}])):
        seen.mark("clip")
        seen.step()
    seen.row(0)
    assert seen.row(0)["system/images_per_second"] == 0
    assert not [name for name in seen.row(0) if "clip" in name]


def run(folder: Path, profile: int | None, monkeypatch: pytest.MonkeyPatch, steps: int = 6) -> list[dict[str, float]]:
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(Track, "scalars", lambda self, step, row: shown.append(row))
    task = build("pretrain", f"pretrain.steps={steps}")
    end = fit(
        task,
        lambda start, stop: map(batch_of, range(start, stop)),
        seed=0,
        device=CPU,
        checkpoints=Checkpoints(folder / "checkpoints", 10),
        track=Track("test", folder),
        picture=lambda name, pictures, step: None,
        log_every=2,
        picture_every=10,
        compiled=False,
        replayed=False,
        watch=watch(folder / "profile", profile),
    )
    assert not [name for row in end.history for name in row if name.startswith("system/")]  # curves are bits; times are not
    return shown


def test_a_training_tells_what_each_loss_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path, None, monkeypatch)
    assert len(rows) == 3
    pieces = {name.rpartition("/")[2] for name in rows[-1] if name.startswith("system/milliseconds/")}
    assert {"clip", "l1_lpips", "optimizer", "averages"} <= pieces
    assert rows[-1]["system/images_per_second"] > 0
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [SETTLING + 3, SETTLING + 1])
def test_a_profile_is_a_trace_of_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    run(tmp_path, 2, monkeypatch, steps)
    (trace,) = (tmp_path / "profile").glob("trace-*.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)
