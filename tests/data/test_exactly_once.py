"""Every sample of an epoch is met once: whatever the ranks, the loading processes, and the kills in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.waiting import wait_for
from vtp import dist
from vtp.data.batches import Batches
from vtp.data.shards import Split

BATCH, EPOCHS = 6, 3

TRAINING = """
import sys, time
from pathlib import Path
import torch
from vtp.data.batches import Batches
from vtp.data.shards import Split

torch.set_num_threads(1)
folder, work, workers, steps, alive = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
saved = work / "saved"
start = int(saved.read_text()) if saved.exists() else 0
batches = Batches(Split(folder, "train"), batch=6, seed=11, workers=workers, shards_per_window=2)
for step, batch in zip(range(start, steps), batches(start, steps), strict=True):
    met = " ".join(str(hash_) for hash_ in batch["images"].long().sum((1, 2, 3)).tolist())
    with (work / "met").open("a") as log:
        log.write(f"{step}: {met}\\n")
    while step == start + alive:  # to be killed before or here
        time.sleep(1)
    time.sleep(0.03)
    if step % 3 == 2:
        (work / ".saved").write_text(str(step + 1))
        (work / ".saved").replace(saved)
"""


def addresses(batch: dict[str, torch.Tensor], names: dict[bytes, int]) -> list[int]:
    """Which samples a batch holds, recognised by their pixels."""
    return [names[image.numpy().tobytes()] for image in batch["images"]]


@pytest.fixture(scope="module")
def names(prepared: Path) -> dict[bytes, int]:
    split = Split(prepared, "train")
    found = {split.image(i).numpy().tobytes(): i for i in range(len(split))}
    assert len(found) == len(split)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_epoch_meets_every_sample_once(
    prepared: Path, names: dict[bytes, int], monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int
) -> None:
    samples = len(names)
    steps = EPOCHS * samples // BATCH + 1
    cut = steps // 2  # a run that stops here, and one that goes on from here
    monkeypatch.setattr(dist, "world", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        parts = [Batches(Split(prepared, "train"), batch=BATCH, seed=11, workers=workers, shards_per_window=2) for _ in range(2)]
        shares.append([*parts[0](0, cut), *parts[1](cut, steps)])
    stream = [address for step in zip(*shares, strict=True) for share in step for address in addresses(share, names)]
    for epoch in range(EPOCHS):
        assert sorted(stream[samples * epoch : samples * (epoch + 1)]) == list(range(samples))
    monkeypatch.undo()
    alone = Batches(Split(prepared, "train"), batch=BATCH, seed=11, workers=0, shards_per_window=2)(0, steps)
    assert stream == [address for batch in alone for address in addresses(batch, names)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_training_loses_and_repeats_nothing(prepared: Path, tmp_path: Path, workers: int) -> None:
    split = Split(prepared, "train")
    sums = [int(split.image(i).long().sum()) for i in range(len(split))]
    assert len(set(sums)) == len(sums)  # so a sum is an address
    steps = EPOCHS * len(split) // BATCH + 1
    command = [sys.executable, "-c", TRAINING, str(prepared), str(tmp_path), str(workers), str(steps)]
    rng = random.Random(workers)
    saved = tmp_path / "saved"
    for alive, ready in ((0, lambda: _lines(tmp_path)), (2, lambda: _lines(tmp_path) > 1), (4, saved.exists)):
        process = subprocess.Popen([*command, str(alive)], start_new_session=True)
        wait_for(ready)
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)  # the process and those that load for it
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, str(steps)], check=True)
    met: dict[int, str] = {}
    for line in (tmp_path / "met").read_text().splitlines():
        step, _, content = line.partition(": ")
        assert met.setdefault(int(step), content) == content, f"step {step} was another one after a kill"
    stream = [int(value) for step in range(steps) for value in met[step].split()]
    for epoch in range(EPOCHS):
        assert sorted(stream[len(split) * epoch : len(split) * (epoch + 1)]) == sorted(sums)


def _lines(folder: Path) -> int:
    return len((folder / "met").read_text().splitlines()) if (folder / "met").exists() else 0
