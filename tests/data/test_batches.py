from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.waiting import PATIENCE
from vtp import dist
from vtp.config import ROOT
from vtp.data import batches
from vtp.data.batches import Batches
from vtp.data.order import Order
from vtp.data.shards import Split, tar_name


def collect(prepared: Path, start: int, stop: int, *, seed: int = 5, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    return list(Batches(Split(prepared, "train"), batch=4, seed=seed, workers=workers, shards_per_window=2)(start, stop))


def equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in ("images", "tokens", "labels"))


def test_steps_follow_the_order(prepared: Path) -> None:
    split = Split(prepared, "train")
    positions = Order(split.shard_lengths, seed=5, window=2).positions(0, 48).view(12, 4)
    for batch, samples in zip(collect(prepared, 0, 12), positions, strict=True):
        assert torch.equal(batch["labels"], split.labels[samples])
        assert torch.equal(batch["tokens"], split.tokens[samples])
        assert torch.equal(batch["images"], torch.stack([split.image(i) for i in samples.tolist()]))


def test_a_resumed_stream_goes_on_where_the_unbroken_one_does(prepared: Path) -> None:
    whole = collect(prepared, 0, 12)
    assert equal(collect(prepared, 7, 12), whole[7:])
    assert not equal(collect(prepared, 0, 12, seed=6), whole)
    assert collect(prepared, 3, 3) == []


def test_loading_processes_change_nothing_and_draw_from_no_global_generator(prepared: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert equal(collect(prepared, 2, 12, workers=2), collect(prepared, 2, 12))
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_share_the_global_batch(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(prepared, 0, 6)
    monkeypatch.setattr(dist, "world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        shares.append(collect(prepared, 0, 6))
    joined = [{name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(*shares, strict=True)]
    assert equal(joined, whole)
    monkeypatch.setattr(dist, "world", lambda: 3)
    with pytest.raises(ValueError, match="batch=4 does not divide over 3 ranks"):
        collect(prepared, 0, 1)


def test_a_batch_divided_among_loading_processes_is_the_undivided_one(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PIECE", 1)
    split = Split(prepared, "train")

    def of(workers: int) -> list[dict[str, torch.Tensor]]:
        return list(Batches(split, batch=4, seed=5, workers=workers, shards_per_window=2)(1, 6))

    assert Batches(split, batch=4, seed=5, workers=2).pieces == 2
    assert equal(of(2), of(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_loading_process_is_one_line(prepared: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(prepared, folder)
    split = Split(folder, "train")
    (folder / tar_name("train", 2)).unlink()
    with pytest.raises(ValueError, match=r"train-00002\.tar is gone since .*") as caught:
        list(Batches(split, batch=4, seed=5, workers=workers)(0, 5))
    assert "\n" not in str(caught.value)


def test_a_stream_can_be_left_in_the_middle(prepared: Path) -> None:
    before = set(multiprocessing.active_children())
    stream = Batches(Split(prepared, "train"), batch=4, seed=5, workers=1)(0, 1000)
    next(stream)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert set(multiprocessing.active_children()) > before
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    del stream
    assert set(multiprocessing.active_children()) <= before


def test_a_stream_that_is_left_does_not_wait_for_tars_it_will_not_read(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that takes the machine away waits some seconds, not for sixteen files."""
    fetched: list[int] = []
    left = threading.Event()

    def fetch(split: Split, shard: int) -> None:
        fetched.append(shard)
        left.wait(PATIENCE)

    class Pool(ThreadPoolExecutor):
        """What is being fetched ends once the stream is left."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            left.set()
            super().shutdown(wait)

    monkeypatch.setattr(batches, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(Split, "fetch", fetch)
    monkeypatch.setattr(Split, "remote", True)
    split = Split(prepared, "train")
    stream = Batches(split, batch=2, seed=5, workers=0, shards_per_window=4)(0, 1000)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(split.tars) == 4
    assert len(fetched) <= batches.FETCHERS


def test_a_process_that_failed_in_the_middle_of_a_stream_ends(prepared: Path) -> None:
    script = (
        "from pathlib import Path; from vtp.data.batches import Batches; from vtp.data.shards import Split\n"
        f"stream = Batches(Split(Path({str(prepared)!r}), 'train'), batch=4, seed=5, workers=2)(0, 1000)\n"
        "next(stream); raise ValueError('diverged')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "diverged" in done.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 4, 6, 19, 50])
def test_samples_in_order_come_once_each(prepared: Path, monkeypatch: pytest.MonkeyPatch, workers: int, batch: int) -> None:
    monkeypatch.setattr(batches, "PIECE", 1)
    split = Split(prepared, "train")
    samples = torch.arange(19).flip(0)
    made = list(batches.in_order(split, samples, batch=batch, workers=workers))
    assert [len(part["labels"]) for part in made] == [len(part) for part in samples.split(batch)]
    whole = split.rows(samples)
    assert all(torch.equal(torch.cat([part[name] for part in made]), whole[name]) for name in whole)
    assert list(batches.in_order(split, samples[:0], batch=batch, workers=workers)) == []
