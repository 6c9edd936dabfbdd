from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vtp.data.tally import MOST_SIDE, SHAPES, Tally, quantiles


def frame(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    width, height = rng.integers(8, 6000, (2, rows))
    columns = {
        "caption_ids": rng.integers(3, 9, rows),
        "label": rng.integers(0, 3, rows),
        "short_side": np.minimum(width, height),
        "height": height,
        "width": width,
    }
    return pd.DataFrame({name: pd.array(values, "Int64") for name, values in columns.items()})


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [frame(rng, rows) for rows in (40, 0, 25)]
    levels = [[rng.integers(0, 9, (3, 256)) for _ in range(len(one))] for one in frames]
    for i, one in enumerate(frames):
        part = Tally.empty(8, 3)
        part.count(one, levels[i], rows=len(one) + i)
        part.save(tmp_path / f"{i}.npz")
    total = Tally.total(tmp_path / f"{i}.npz" for i in range(3))
    whole = pd.concat(frames)
    assert (total.rows[0], total.broken[0]) == (68, 3)
    assert np.array_equal(total.classes, np.bincount(whole["label"], minlength=3))
    assert np.array_equal(total.levels, sum(sum(part) for part in levels if part))
    facts = total.facts()
    assert facts["pictures"] == 65
    assert facts["caption_ids"]["q00"] == whole["caption_ids"].min()
    assert facts["short_side"]["q50"] == min(whole["short_side"].median(), MOST_SIDE)
    assert sum(facts["counts"]["shape"]) == 65
    wide = int((np.log2(whole["width"].astype(float) / whole["height"].astype(float)) > 0.1).sum())
    assert sum(facts["counts"]["shape"][SHAPES // 2 + 1 :]) == wide


def test_quantiles_of_counts_are_those_of_the_numbers() -> None:
    values = np.random.default_rng(1).integers(0, 50, 1001)
    found = quantiles(np.bincount(values))
    expected = np.quantile(values, [0, 0.05, 0.5, 0.95, 1], method="inverted_cdf")
    assert list(found.values()) == expected.tolist()


def test_without_decoded_pixels_channels_have_no_mean() -> None:
    tally = Tally.empty(8, 1)
    assert tally.channels() == {"channel_mean": None, "channel_std": None}
    tally.levels[:, 255] = 10
    assert tally.channels()["channel_mean"] == pytest.approx([1, 1, 1])
