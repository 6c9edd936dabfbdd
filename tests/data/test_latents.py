from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vtp import dist
from vtp.data.latents import (
    LatentBatches,
    LatentStore,
    LatentWriter,
    copy_latents,
    load_statistics,
    own_statistics,
    save_statistics,
)
from vtp.seeding import generator

PUBLIC = Path(__file__).parents[1] / "oracles" / "latents"


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator(seed, "samples")
    latents = torch.randn(count, 3, 2, 2, generator=draw) * torch.tensor([0.1, 1.0, 5.0])[:, None, None] + 2
    return latents, latents.flip(-1), torch.arange(count) * 7 % 10


def write(folder: Path, count: int = 23, shard_samples: int = 10, batch: int = 4, most: int = 1000) -> None:
    latents, flipped, labels = samples(count)
    writer = LatentWriter(folder, shard_samples=shard_samples)
    for i in range(0, count, batch):
        writer.append(latents[i : i + batch], flipped[i : i + batch], labels[i : i + batch])
    writer.finish(statistics_samples=most, seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "latents")
    return tmp_path / "latents"


def test_what_was_written_is_read_back(folder: Path) -> None:
    latents, flipped, labels = samples(23)
    store = LatentStore.open(folder)
    order = torch.randperm(23, generator=generator(0, "order"))
    flip = torch.rand(23, generator=generator(0, "flip")) < 0.5
    read, read_labels = store.read(order, flip)
    expected = torch.where(flip[:, None, None, None], flipped[order], latents[order])
    torch.testing.assert_close(read * store.std + store.mean, expected)
    assert torch.equal(read_labels, labels[order])
    assert torch.equal(store.labels, labels)
    whole, _ = store.read(torch.arange(23), torch.zeros(23, dtype=torch.bool))
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.transpose(0, 1).flatten(1).std(1), torch.ones(3), atol=1e-5, rtol=0)


def test_equal_latents_give_equal_bytes_however_they_arrive(tmp_path: Path) -> None:
    write(tmp_path / "one", shard_samples=2, batch=4)
    write(tmp_path / "other", shard_samples=2, batch=23)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 14
    assert names == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_statistics_of_a_part_are_spread_over_the_whole(tmp_path: Path) -> None:
    writer = LatentWriter(tmp_path, shard_samples=30)
    ramp = torch.arange(100.0)[:, None, None, None].expand(100, 1, 1, 1)
    writer.append(ramp, -ramp, torch.zeros(100))
    writer.finish(statistics_samples=10, seed=3)
    mean, std = load_statistics(tmp_path)
    assert mean.item() == pytest.approx(ramp.mean().item(), abs=4.5)  # each of ten stretches is off by 4.5 on average at most
    assert std.item() == pytest.approx(ramp.std().item(), abs=5)
    assert std.item() != pytest.approx(ramp.std().item(), abs=1e-3)


def test_ranks_write_files_of_their_own(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, flipped, labels = samples(23)
    writers = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        writers.append(LatentWriter(tmp_path / "two", shard_samples=10))
    for rank, rows in ((1, slice(12, 23)), (0, slice(0, 12))):  # rank 0, which takes the statistics, is the last
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        writers[rank].append(latents[rows], flipped[rows], labels[rows])
        writers[rank].finish(statistics_samples=1000, seed=0)
    one, two = LatentStore.open(folder), LatentStore.open(tmp_path / "two")
    assert two.shard_lengths == [10, 2, 10, 1]
    torch.testing.assert_close(two.std, one.std)
    everything = torch.arange(23), torch.zeros(23, dtype=torch.bool)
    torch.testing.assert_close(two.read(*everything)[0], one.read(*everything)[0])


def test_batches_are_permutations_that_any_step_can_enter(folder: Path) -> None:
    store = LatentStore.open(folder)
    batches = LatentBatches(store, 8, seed=5)
    stream = list(batches(0, 23))
    assert stream[0]["latents"].shape == (8, 3, 2, 2)
    counts = torch.bincount(torch.cat([batch["labels"] for batch in stream]), minlength=10)
    assert torch.equal(counts, 8 * torch.bincount(store.labels, minlength=10))  # 23 steps of 8 are 8 epochs
    resumed = list(batches(17, 19))
    for batch, again in zip(stream[17:19], resumed, strict=True):
        assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(stream[0]["labels"], next(LatentBatches(store, 8, seed=6)(0, 1))["labels"])


def test_half_of_the_latents_are_flipped(tmp_path: Path) -> None:
    writer = LatentWriter(tmp_path, shard_samples=40)
    latents = torch.randn(40, 1, 2, 2, generator=generator(0, "latents")).abs()
    writer.append(latents, -latents, torch.arange(40))
    writer.finish(statistics_samples=40, seed=0)
    store = LatentStore.open(tmp_path)
    flips = torch.cat([(b["latents"] * store.std + store.mean)[:, 0, 0, 0] < 0 for b in LatentBatches(store, 40, seed=0)(0, 10)])
    assert 150 < flips.sum() < 250
    assert not torch.equal(flips[:40], flips[40:80])


def test_ranks_share_one_global_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LatentStore.open(folder)
    whole = list(LatentBatches(store, 8, seed=1)(2, 5))
    parts = []
    monkeypatch.setattr(dist, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        parts.append(list(LatentBatches(store, 8, seed=1)(2, 5)))
    for batch, first, second in zip(whole, *parts, strict=True):
        for key in batch:
            assert torch.equal(batch[key], torch.cat([first[key], second[key]]))


def test_a_reader_that_stops_early_leaves_nothing_waiting(folder: Path) -> None:
    stream = LatentBatches(LatentStore.open(folder), 8, seed=1)(0, 1000)
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()
    assert list(stream) == []


def test_what_cannot_be_used_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no shards"):
        LatentStore.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="already"):
        LatentWriter(folder, shard_samples=4)
    writer = LatentWriter(tmp_path / "flat", shard_samples=4)
    latents = samples(4)[0]
    latents[:, 1] = 3.0
    writer.append(latents, latents, torch.arange(4))
    with pytest.raises(ValueError, match="channel 1"):
        writer.finish(statistics_samples=4, seed=0)
    shutil.copy(PUBLIC / "latents_rank00_shard000.safetensors", folder / "latents_rank09_shard000.safetensors")
    with pytest.raises(ValueError, match="latents_rank09_shard000"):
        LatentStore.open(folder)
    cut = folder / "latents_rank00_shard001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(ValueError, match="latents_rank00_shard001"):
        LatentStore.open(folder)


def test_latents_from_elsewhere_are_copied_and_checked(tmp_path: Path) -> None:
    copy_latents(PUBLIC, tmp_path, channels=6, num_classes=1000)
    theirs, ours = LatentStore.open(PUBLIC), LatentStore.open(tmp_path)
    everything = torch.arange(len(theirs)), torch.zeros(len(theirs), dtype=torch.bool)
    assert torch.equal(ours.read(*everything)[0], theirs.read(*everything)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(p.name for p in PUBLIC.glob("latents_*")), "latents_stats.st"])
    with pytest.raises(ValueError, match="latents of 6 channels, the tokenizer of this pipeline makes 8"):
        copy_latents(PUBLIC, tmp_path / "other", channels=8, num_classes=1000)
    most = int(theirs.labels.max())
    with pytest.raises(ValueError, match=f"the label {most}; the prepared data has classes 0 to {most - 1}"):
        copy_latents(PUBLIC, tmp_path / "other", channels=6, num_classes=most)


def test_statistics_of_a_model_take_the_place_of_the_folders_own(tmp_path: Path, folder: Path, caplog) -> None:
    save_statistics(tmp_path, torch.full((3,), 2.0), torch.full((3,), 4.0))
    assert own_statistics(tmp_path) == tmp_path
    own, other = LatentStore.open(folder), LatentStore.open(folder, own_statistics(tmp_path))
    rows = torch.arange(5), torch.zeros(5, dtype=torch.bool)
    torch.testing.assert_close(other.read(*rows)[0] * 4 + 2, own.read(*rows)[0] * own.std + own.mean)
    with caplog.at_level("INFO"):
        assert own_statistics(tmp_path / "dit.pt") is None
    assert "carries no statistics" in caplog.text
    assert own_statistics(None) is None
    save_statistics(tmp_path, torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"statistics of 2 channels, .* latents of 3"):
        LatentStore.open(folder, tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1.0], "does not hold the tensors"),
        ({"mean": torch.zeros(3)}, "does not hold the tensors"),
        ({"mean": torch.zeros(3), "std": torch.tensor([1.0, 0.0, 1.0])}, "std positive"),
        ({"mean": torch.zeros(3), "std": torch.ones(2)}, "as long as each other"),
        ({"mean": torch.tensor([float("nan")] * 3), "std": torch.ones(3)}, "finite"),
        ({"mean": torch.zeros(3), "std": torch.ones(3), "note": Path("x")}, "could run code"),
    ],
)
def test_statistics_that_cannot_be_used_are_named(tmp_path: Path, content: object, match: str) -> None:
    torch.save(content, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match=match) as caught:
        load_statistics(tmp_path)
    assert str(tmp_path / "latents_stats.pt") in str(caught.value)


def test_a_folder_without_statistics_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither latents_stats"):
        load_statistics(tmp_path)
