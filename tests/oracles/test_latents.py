"""Shards and statistics that the public scripts wrote, read as their training set reads them; ours beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.data.latents import LatentStore, LatentWriter, load_statistics

HERE = FOLDER / "latents"
ORACLE = load_file(HERE / "io.st")
SHARDS = sorted(HERE.glob("*.safetensors"))
ITEMS = sorted({int(name.split(".")[0].removeprefix("item")) for name in ORACLE if name.startswith("item")})


def scaled(compare: Compare, name: str, ours: Tensor) -> None:
    size = max(1.0, ORACLE[name].abs().max().item())
    compare("latents", name, ours, ORACLE[name], Tolerance(2e-5 * size, 2e-5 * size))


def test_items(compare: Compare) -> None:
    """In an order of our own, and mixed, so that no shard is read alone."""
    store = LatentStore.open(HERE)
    assert (len(store), len(store.shard_lengths)) == (len(ITEMS), len(SHARDS))
    order = torch.tensor(ITEMS[::2] + ITEMS[1::2][::-1])
    for kind in ("plain", "flip"):
        latents, labels = store.read(order, torch.full((len(order),), kind == "flip"))
        for item, latent, label in zip(order.tolist(), latents, labels, strict=True):
            scaled(compare, f"item{item}.{kind}", latent)
            compare("latents", f"item{item}.label", label, ORACLE[f"item{item}.label"], Tolerance(0, 0))


def test_statistics(compare: Compare) -> None:
    for name, value in zip(("mean", "std"), load_statistics(HERE), strict=True):
        scaled(compare, name, value)


def test_the_multiplier_that_is_one_here(compare: Compare) -> None:
    """The published scripts can scale normalised latents; ours leave the multiplier at 1, the value of every released model."""
    store = LatentStore.open(HERE)
    for name in (name for name in ORACLE if name.startswith("multiplier")):
        multiplier = float(name.removeprefix("multiplier").removesuffix(".item0"))
        picked = [ORACLE[f"item0.{kind}"] for kind in ("plain", "flip")]
        which = min((0, 1), key=lambda i, picked=picked, name=name: (picked[i] * multiplier - ORACLE[name]).abs().sum().item())
        ours = store.read(torch.tensor([0]), torch.tensor([which == 1]))[0][0]
        scaled(compare, name, ours * multiplier)
    for name in (name for name in ORACLE if name.startswith("denorm.output")):
        multiplier = float(name.removeprefix("denorm.output_multiplier"))
        scaled(compare, name, ORACLE["denorm.input"] * store.std / multiplier + store.mean)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same latents, written by ours, in files of other lengths."""
    folder = tmp_path_factory.mktemp("written")
    writer = LatentWriter(folder, shard_samples=5)
    for path in SHARDS:
        shard = load_file(path)
        writer.append(shard["latents"], shard["latents_flip"], shard["labels"])
    writer.finish(statistics_samples=10000, seed=0)
    return folder


def test_statistics_of_ours(compare: Compare, written: Path) -> None:
    public = torch.load(written / "latents_stats.pt", weights_only=True)  # as their training set opens it
    assert set(public) == {"mean", "std"}
    for name, value in zip(("mean", "std"), load_statistics(written), strict=True):
        scaled(compare, name, value)
        assert torch.equal(public[name], value)


def test_files_of_ours_have_the_public_layout(compare: Compare, written: Path) -> None:
    """Names, keys, types and metadata; and the rows, in the order of the names, are the same."""
    paths = sorted(written.glob("*.safetensors"))  # what public readers take for shards
    assert [path.name for path in paths] == [f"latents_rank00_shard{i:03d}.safetensors" for i in range(len(paths))]
    with safe_open(SHARDS[0], "pt") as theirs:
        keys, about = sorted(theirs.keys()), theirs.metadata()
    for path in paths:
        with safe_open(path, "pt") as ours:
            assert sorted(ours.keys()) == keys
            count = len(ours.get_tensor("labels"))
            assert ours.metadata() == about | {"total_size": str(count)}
    for key in keys:
        ours, theirs = (torch.cat([load_file(path)[key] for path in files]) for files in (paths, SHARDS))
        compare("latents", f"shards:{key}", ours, theirs, Tolerance(0, 0))


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    items = {f"item{item}.{kind}" for item in ITEMS for kind in ("plain", "flip", "label")}
    scale = {name for name in ORACLE if name.startswith(("multiplier", "denorm.output"))}
    assert set(ORACLE) == items | scale | {"mean", "std", "denorm.input"}
