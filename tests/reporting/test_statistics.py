from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vtp.data.tally import SHAPES, Tally
from vtp.reporting.statistics import _binned, plot_statistics


def tally(pictures: int, classes: int) -> Tally:
    found = Tally.empty(16, classes)
    for i in range(pictures):
        found.caption_ids[5 + i % 7] += 1
        found.classes[i % classes] += 1
        found.short_sides[100 + 37 * (i % 11)] += 1
        found.shapes[SHAPES // 2 + i % 3] += 1
    return found


def test_a_sheet_is_drawn_the_same_each_time_and_for_a_single_class_too(tmp_path: Path) -> None:
    for classes in (1, 10):
        facts = {"train": tally(500, classes).facts(), "validation": tally(50, classes).facts()}
        for name in ("a", "b"):
            plot_statistics(tmp_path / f"{name}.png", facts)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        assert picture.shape[1] > 1000
        assert (picture != 255).mean() > 0.02


def test_bins_hold_every_count_once() -> None:
    counts = np.zeros(500, dtype=np.int64)
    counts[[64, 65, 300, 499]] = [3, 4, 5, 6]
    places, sums = _binned(counts)
    assert sums.sum() == 18
    assert len(places) <= 45
    assert (sums[0], sums[-1]) == (0, 0)
    assert _binned(np.array([0, 0, 7]))[1].sum() == 7
