"""Two processes with half of every batch train as one with the whole: losses, gradient norms and weights, for every task."""

from __future__ import annotations

import json
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from tests.tasks.conftest import ALL, batch_of, build
from tests.waiting import PATIENCE
from vtp import dist
from vtp.engine.checkpoint import Checkpoints
from vtp.engine.loop import fit
from vtp.engine.watch import Watch
from vtp.tracking import Track

WORLD, STEPS = 2, 6
SETTINGS = {"pretrain": ("pretrain.drop_path=0.2",)}


def train(kind: str, folder: Path, *, signalled: bool = False) -> None:
    """A few steps on this rank's rows; curves and weights to `folder`."""
    task = build(kind, *SETTINGS.get(kind, ()))

    def batches(start: int, stop: int):
        for step in range(start, stop):
            if signalled and step == 2 and dist.rank() == 1:
                signal.raise_signal(signal.SIGTERM)  # reaches one rank only
            yield {name: rows[dist.rows(len(rows))] for name, rows in batch_of(step).items()}

    end = fit(
        task,
        batches,
        seed=1,  # at 0 a unit of the discriminator lies within rounding of its kink, and its gradient jumps
        device=torch.device("cpu"),
        checkpoints=Checkpoints(folder / f"{kind}-{signalled}", STEPS),
        track=Track("test", folder),
        picture=lambda name, pictures, step: None,
        log_every=1,
        picture_every=STEPS,
        compiled=False,
        watch=Watch(torch.device("cpu"), task.batch, profile=None, folder=folder / "profile"),
        replayed=False,
    )
    (folder / f"{kind}.{dist.rank()}.json").write_text(json.dumps(end.history))
    save_file(dict(task.models.state_dict()), folder / f"{kind}.{dist.rank()}.safetensors")


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = td.FileStore(f"{folder}/store", WORLD)
    td.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE))
    for kind in ALL:
        train(kind, Path(folder))
    try:
        train("dit", Path(folder), signalled=True)
    except SystemExit as left:
        (Path(folder) / f"left.{rank}").write_text(str(left.code))
    dist.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, args=(str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("kind", ALL)
def test_two_ranks_train_as_one(kind, ranks, tmp_path):
    train(kind, tmp_path)
    alone = json.loads((tmp_path / f"{kind}.0.json").read_text())
    weights = load_file(tmp_path / f"{kind}.0.safetensors")
    for rank in range(WORLD):
        rows = json.loads((ranks / f"{kind}.{rank}.json").read_text())
        for ours, theirs in zip(rows, alone, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-5)
        for name, tensor in load_file(ranks / f"{kind}.{rank}.safetensors").items():
            torch.testing.assert_close(tensor, weights[name], atol=2e-4, rtol=2e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_a_signal_to_one_rank_stops_all_after_the_same_step(ranks):
    assert [(ranks / f"left.{rank}").read_text() for rank in range(WORLD)] == ["75", "75"]
    assert [path.name for path in (ranks / "dit-True").iterdir()] == ["step-00000003"]
