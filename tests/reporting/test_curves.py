from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from vtp.reporting.curves import _running_mean, plot, read_csv, write_csv


def history(steps: int) -> list[dict[str, float]]:
    """A scalar from the start, and one that begins in the middle."""
    rows = []
    for step in range(steps):
        row: dict[str, float] = {"step": step, "l1": 1 / (step + 3)}
        if step >= steps // 2:
            row["adversarial"] = math.sin(step)
        rows.append(row)
    return rows


def test_csv_gives_the_numbers_back(tmp_path) -> None:
    rows = history(6)
    write_csv(tmp_path / "curves" / "a.csv", rows)
    assert (tmp_path / "curves" / "a.csv").read_text().startswith("step,l1,adversarial\n0,0.333333333,\n")
    read = read_csv(tmp_path / "curves" / "a.csv")
    assert [list(row) for row in read] == [list(row) for row in rows]
    for given, got in zip(rows, read, strict=True):
        assert all(np.float32(given[name]) == np.float32(got[name]) for name in given)


def test_csv_shows_a_divergence(tmp_path) -> None:
    write_csv(tmp_path / "a.csv", [{"step": 0, "loss": 1.0}, {"step": 1, "loss": math.nan}])
    assert (tmp_path / "a.csv").read_bytes() == b"step,loss\n0,1\n1,nan\n"


def test_the_same_history_gives_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv", history(80))
        plot(tmp_path / f"{name}.png", history(80), "Decoder fine-tuning")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.png", "b.csv", "b.png"]


def test_each_scalar_has_a_panel_and_nothing_global_is_touched(tmp_path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    sizes = {}
    for count in (1, 2, 3, 4):
        rows = [{"step": step} | {f"term{i}": step * i + 1.0 for i in range(count)} for step in (0, 10, 20)]
        plot(tmp_path / "a.png", rows, "panels")
        with Image.open(tmp_path / "a.png") as image:
            sizes[count] = image.size
    assert sizes[1][0] < sizes[2][0] < sizes[3][0] == sizes[4][0]
    assert sizes[1][1] == sizes[3][1] < sizes[4][1]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("values", [[1.0], [math.nan, math.inf], [2.0, math.nan, 2.0], [1e-9, 1e9]])
def test_odd_histories_can_be_drawn(tmp_path, values: list[float]) -> None:
    plot(tmp_path / "a.png", [{"step": step, "loss": value} for step, value in enumerate(values)], "odd")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_running_mean_is_the_mean_of_the_window() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 9.0])
    naive = [np.nanmean(values[max(0, i - 1) : i + 2]) for i in range(6)]
    naive[2] = np.nan
    np.testing.assert_allclose(_running_mean(values, window=3), naive)


def test_histories_that_say_nothing_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        plot(tmp_path / "a.png", [], "empty")
    with pytest.raises(ValueError, match=r"row 1 .* has no step"):
        write_csv(tmp_path / "a.csv", [{"step": 0, "loss": 1.0}, {"loss": 1.0}])
    with pytest.raises(ValueError, match="no scalar"):
        plot(tmp_path / "a.png", [{"step": 0}], "empty")


def test_a_history_without_rows_is_a_header_alone(tmp_path) -> None:
    write_csv(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text() == "step\n"
    assert read_csv(tmp_path / "a.csv") == []
