"""Figures: medians, operations, errors and the record of them."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure

CPU = torch.device("cpu")


def test_the_median_of_the_runs_is_reported_and_the_warm_up_is_not(monkeypatch: pytest.MonkeyPatch):
    waits, now = iter([0.5, 0.002, 0.02, 0.001]), [0.0]

    def work() -> None:
        now[0] += next(waits)

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    timing = measure.timed(work, CPU, warmup=1, runs=3)
    assert timing.runs == 3
    assert [timing.fastest, timing.milliseconds, timing.slowest] == pytest.approx([1, 2, 20])


def test_operations_of_a_matrix_product_are_counted():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert measure.flop(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_error_is_relative_to_all_numbers_together():
    expected = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert measure.relative_error([torch.tensor([3.0]), torch.tensor([4.5])], expected) == pytest.approx(0.1)
    assert math.isnan(measure.relative_error([torch.tensor([math.nan]), torch.tensor([4.0])], expected))


def test_a_record_holds_the_rate_and_its_share_of_the_ceiling(tmp_path):
    timing = measure.Timing(milliseconds=10.0, fastest=9.0, slowest=12.0, runs=3, peak_gib=1.5)
    path = measure.record(
        "W0",
        timing,
        CPU,
        module="benchmarks.none",
        ceiling_tflops=2.0,
        flop=1e10,
        extra={"images_per_second": 7.0},
        folder=tmp_path,
    )
    assert path == tmp_path / "cpu" / "W0.json"
    values = json.loads(path.read_text())
    assert (values["milliseconds"], values["peak_gib"], values["images_per_second"]) == (10.0, 1.5, 7.0)
    assert (values["tflops"], values["share_of_ceiling"]) == (1.0, 0.5)
    assert values["command"].startswith("python -m benchmarks.none")
    assert {"torch", "python"} <= set(values["versions"])
