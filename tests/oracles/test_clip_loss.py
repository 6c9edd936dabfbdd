"""OpenCLIP's two losses, in one process and in as many as were stored, with every gradient on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare
from vtp import dist
from vtp.objectives.contrastive import clip_loss, siglip_loss

ORACLE = load_file(FOLDER / "clip_loss" / "io.safetensors")
SIZES = json.loads((FOLDER / "clip_loss" / "config.json").read_text())["oracle"]
WORLDS = SIZES["worlds"]
SINGLE = ("clip", "clip_bias", "siglip", "siglip_chunked")
Tensors = dict[str, Tensor]


def loss_and_gradients(kind: str, rows: slice) -> Tensors:
    """Our loss of these rows, and its gradients at what it was given."""
    given = {
        "image": ORACLE["image"][rows],
        "text": ORACLE["text"][rows],
        "scale": ORACLE["log_logit_scale"].exp(),
        "bias": ORACLE["logit_bias"],
    }
    given = {name: value.clone().requires_grad_() for name, value in given.items()}
    if kind == "clip":
        loss = clip_loss(given["image"], given["text"], given["scale"])
        del given["bias"]
    elif kind == "clip_bias":
        loss = clip_loss(given["image"], given["text"], given["scale"], given["bias"])
    else:
        chunk = SIZES["chunk"] if kind == "siglip_chunked" else None
        loss = siglip_loss(given["image"], given["text"], given["scale"], given["bias"], chunk=chunk)
    grads = torch.autograd.grad(loss, list(given.values()))
    return {"loss": loss.detach()} | {f"grad_{name}": grad for name, grad in zip(given, grads, strict=True)}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_process(compare: Compare, kind: str) -> None:
    found = loss_and_gradients(kind, slice(None))
    for key, value in found.items():
        compare("clip_loss", f"single.{kind}.{key}", value, ORACLE[f"single.{kind}.{key}"])


def test_every_pair_a_mismatch(compare: Compare) -> None:
    """The matches asked as mismatches: they cost -log sigmoid(-x) in place of -log sigmoid(x), which is x more."""
    image, text = ORACLE["image"], ORACLE["text"]
    scale, bias = ORACLE["log_logit_scale"].exp(), ORACLE["logit_bias"]
    matches = (scale * (image * text).sum(1) + bias).mean()
    found = siglip_loss(image, text, scale, bias) + matches
    compare("clip_loss", "single.siglip.negative_only", found, ORACLE["single.siglip.negative_only"])


def one_rank(rank: int, folder: str) -> None:
    """Join a group of each stored size in turn, and write what this rank finds in it."""
    torch.set_num_threads(1)
    found: Tensors = {}
    for world in WORLDS:
        if rank >= world:
            continue
        td.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world)
        share = SIZES["B"] // world
        rows, gather = slice(rank * share, (rank + 1) * share), dist.gather
        kinds = {kind: loss_and_gradients(kind, rows) for kind in ("clip", "siglip", "siglip_chunked")}
        with mock.patch.object(dist, "gather", lambda value, gather=gather: gather(value).detach()):
            kinds["cut"] = loss_and_gradients("clip", rows)
        found |= {f"world{world}.{kind}.{key}": value for kind, values in kinds.items() for key, value in values.items()}
        dist.barrier()
        dist.stop()
    save_file({name: value.contiguous() for name, value in found.items()}, f"{folder}/{rank}.safetensors")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Tensors]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, args=(str(folder),), nprocs=max(WORLDS))
    return [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(max(WORLDS))]


def expected(world: int, rank: int) -> Tensors:
    """The names stored for one rank of one world."""
    prefix = f"world{world}.rank{rank}."
    return {name.removeprefix(prefix): value for name, value in ORACLE.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("world", "rank"), [(world, rank) for world in WORLDS for rank in range(world)])
def test_several_processes(compare: Compare, ranks: list[Tensors], world: int, rank: int) -> None:
    """Ours is `local_loss` with `gather_with_grad`; the other three are what they should be beside it, two of them wrong."""
    share = SIZES["B"] // world
    whole = loss_and_gradients("clip", slice(0, share * world))
    rows = slice(rank * share, (rank + 1) * share)
    alone = {key: value[rows] if key in ("grad_image", "grad_text") else value for key, value in whole.items()}
    summed = {key: value * (world if key in ("grad_image", "grad_text") else 1) for key, value in alone.items()}
    ours = {kind: {} for kind in ("clip", "siglip", "siglip_chunked", "cut")}
    for name, value in ranks[rank].items():
        where, kind, key = name.split(".")
        if where == f"world{world}":
            ours[kind][key] = value
    found = {
        "clip.local1_grad1": ours["clip"],
        "clip.local1_grad0": ours["cut"],  # as ours, if the gather carried no gradient
        "clip.local0_grad1": summed,
        "clip.local0_grad0": alone,
    }
    stored = expected(world, rank)
    kinds = {name.rsplit(".", 1)[0] for name in stored}
    for kind in kinds - found.keys():
        assert kind.startswith("siglip."), kind  # ways to pass the texts around, all the same sum
        found[kind] = ours["siglip"]
    for name, value in stored.items():
        kind, key = name.rsplit(".", 1)
        compare("clip_loss", f"world{world}.rank{rank}.{name}", found[kind][key], value)
    for key, value in ours["siglip_chunked"].items():
        torch.testing.assert_close(value, ours["siglip"][key], atol=1e-5, rtol=1e-5)


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"image", "text", "log_logit_scale", "logit_bias"}
    single = {f"single.{kind}.{key}" for kind in SINGLE for key in loss_and_gradients(kind, slice(None))}
    several = {f"world{w}.rank{r}.{name}" for w in WORLDS for r in range(w) for name in expected(w, r)}
    assert set(ORACLE) == inputs | single | several | {"single.siglip.negative_only"}
