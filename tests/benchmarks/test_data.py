from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import photographs, prepare
from benchmarks.data import TINY, _paced, all_views, loader, torchvision_views
from vtp.data.shards import Split
from vtp.seeding import Draws

KIND = TINY[64]


def test_written_pictures_are_read_back(tmp_path) -> None:
    pool = photographs.jpegs(3, 40, 50)
    assert len(set(pool)) == 3
    photographs.write(tmp_path / "p", pool, shards=2, samples=4, image_size=32, store_size=40)
    split = Split(tmp_path / "p", "train")
    assert split.shard_lengths == [4, 4]
    shown = split.rows(torch.arange(8), split.store_size)
    assert shown["images"].shape == (8, 3, 40, 40)
    assert torch.equal(shown["images"][0], shown["images"][3])
    assert shown["labels"].tolist() == [0, 1, 2, 3] * 2


def test_photographs_fall_off_as_one_over_the_frequency() -> None:
    power = np.abs(np.fft.rfft2(photographs.pixels(0, 128, 128).mean(2))) ** 2
    low, high = power[4:8, 4:8].mean(), power[16:32, 16:32].mean()
    assert 8 < low / high < 32  # four times the frequency, a sixteenth of the power


def test_both_ways_make_the_same_views() -> None:
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = all_views(images, Draws(0, 0), KIND)
    with torch.random.fork_rng():
        theirs = torchvision_views(KIND)(images)
    assert [tuple(view.shape) for view in ours] == [(8, 3, 64, 64), (4, 3, 64, 64), (4, 3, 32, 32)]
    assert sum(map(len, ours)) == len(theirs)
    assert {tuple(view.shape) for view in theirs} == {(3, 64, 64), (3, 32, 32)}


def test_a_waiting_loader_is_measured_as_such() -> None:
    import time

    def slow():
        while True:
            time.sleep(0.02)
            yield {"images": torch.zeros(1)}

    timing = _paced(slow(), lambda batch, step, device: None, torch.device("cpu"), warmup=1, runs=3)
    assert timing.milliseconds >= 20


@pytest.mark.slow
@pytest.mark.parametrize("work", ["copy", "index"])
def test_preparing_is_measured(work: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["benchmark", "--work", work, "--count", "40", "--workers", "1", "--runs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    prepare.main()
    assert json.loads((tmp_path / "cpu" / f"data-prepare-{work}.json").read_text())["images_per_second"] > 0


def test_the_loader_is_measured(tmp_path) -> None:
    timing, extra = loader(KIND, torch.device("cpu"), 1, 2)
    assert timing.runs == 2
    assert extra["images_per_second_loaded"] > 0
