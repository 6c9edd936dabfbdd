"""The page tells what the records hold."""

from __future__ import annotations

from benchmarks import measure, table


def test_the_page_holds_the_table_of_the_records():
    assert table.table() in table.PAGE.read_text(), "docs/performance.md is stale; run `python -m benchmarks.table`"


def test_a_record_is_a_row_and_what_it_lacks_a_dash(tmp_path):
    import torch

    timing = measure.Timing(milliseconds=10.0, fastest=9.0, slowest=12.0, runs=3, peak_gib=1.5)
    measure.record("W0", timing, torch.device("cpu"), module="m", ceiling_tflops=2.0, flop=1e10, extra={}, folder=tmp_path)
    (row,) = table.rows(tmp_path / "cpu")
    assert row[:4] == ("W0", "10", "9 to 12", "-")
    assert row[4:9] == ("1", "2", "50%", "1.5", "-")
    assert "| W0 | 10 |" in table.table(tmp_path)
