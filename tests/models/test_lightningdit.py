"""Published checkpoints in and out, and the ones that must not come in."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.models.test_dit import SMALL
from vtp.config import ROOT
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.models.lightningdit import SIZES, infer_options, load_checkpoint, open_dit, save_checkpoint, size_name
from vtp.seeding import generator

HERE = Path("checkpoint.pt")
VARIANTS = {
    "published": {},
    "plain": {"qk_norm": False, "swiglu": False, "rope": False, "rmsnorm": False},
    "wide feed-forward": {"mlp_ratio": 3.5},
    "wide plain feed-forward": {"mlp_ratio": 8 / 3, "swiglu": False},
    "no shift": {"shift": False},
    "sigma": {"learn_sigma": True, "patch": 3},
    "patch 1": {"patch": 1},
    "normalised without rotation": {"rope": False, "rmsnorm": False},
}


def small(**changes: Any) -> DiT:
    model = DiT(replace(SMALL, **changes))
    draw = generator(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=draw)
    return model.eval()


def run(model: DiT) -> Tensor:
    x = torch.randn(3, 5, 6, 6, generator=generator(0, "x"))
    with torch.no_grad():
        return model(x, torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_out_and_in_again_is_the_same_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = small(**changes)
    save_checkpoint(model, tmp_path / "dit.pt")
    again = load_checkpoint(tmp_path / "dit.pt", heads=SMALL.heads)
    assert torch.equal(run(again), run(model))
    if changes.get("mlp_ratio") != 8 / 3:  # whose hidden width has a rounder ratio
        assert again.options == model.options
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    again.save_pretrained(tmp_path / "ours")
    ours = DiT.from_pretrained(tmp_path / "ours")
    assert torch.equal(run(ours), run(model))
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    ours.save_pretrained(tmp_path / "once more")
    assert (tmp_path / "once more" / "model.safetensors").read_bytes() == before


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def compiled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".attn.", "._orig_mod.attn."): value for name, value in weights.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "average and model": lambda w: {"model": {k: torch.zeros_like(v) for k, v in w.items()}, "ema": w},
    "model only": lambda w: {"model": w, "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}},
    "bare": lambda w: dict(w),
    "wrapped": lambda w: {
        "ema": prefixed(w, "module."),
        "config": {"model": {"model_type": "LightningDiT-XL/1"}, "x": [1, None]},
    },
    "compiled": lambda w: {"ema": prefixed(w, "module._orig_mod.")},
    "compiled blocks": lambda w: {"ema": compiled(w)},
    "half precision": lambda w: {"ema": {k: v.bfloat16() for k, v in w.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_file(tmp_path: Path, layout: str) -> None:
    model = small()
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "dit.pt")
    loaded = open_dit(tmp_path / "dit.pt")
    assert loaded.options == model.options
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(run(loaded), run(model), atol=0.0 if layout != "half precision" else 0.05, rtol=0)


def test_files_that_cannot_be_this_are_refused_by_name(tmp_path: Path) -> None:
    weights = small().state_dict()
    file = tmp_path / "dit.pt"

    def refused(content: Any, match: str, heads: int | None = None) -> None:
        torch.save(content, file)
        with pytest.raises(ValueError, match=match) as caught:
            load_checkpoint(file, heads)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)

    refused([1, 2], "list")
    refused({"ema": 3}, "no weights under 'ema'")
    refused({"opt": {}, "epoch": 3}, "no weights")
    refused({"ema": {"w": torch.ones(2)}}, "not a LightningDiT; it lacks x_embedder.proj.weight, pos_embed")
    refused({"ema": weights | {"surprise": torch.ones(2)}}, "not known: surprise")
    refused({"ema": {k: v for k, v in weights.items() if k != "blocks.1.attn.qkv.bias"}}, "missing: blocks.1.attn.qkv.bias")
    refused({"ema": weights | {"blocks.1.attn.qkv.bias": torch.ones(7)}}, r"blocks.1.attn.qkv.bias is \(7,\), expected \(96,\)")
    refused({"ema": weights | {"pos_embed": torch.ones(1, 8, 32)}}, "no square")
    refused({"ema": weights}, "2 heads", heads=4)
    refused({"ema": small(qk_norm=False, rope=False).state_dict()}, "does not tell its heads")
    refused({"ema": weights, "args": argparse.Namespace(lr=1)}, "argparse.Namespace")


class Intruder:
    """What a malicious checkpoint holds: unpickling it runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    content, trace, file = (
        {"ema": small().state_dict(), "note": Intruder(tmp_path / "ran")},
        tmp_path / "ran",
        tmp_path / "dit.pt",
    )
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"dit\.pt .*(could run code|nothing of it was opened)") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(content))
    assert trace.exists()


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt is missing"):
        load_checkpoint(tmp_path / "nowhere.pt")
    file = tmp_path / "dit.pt"
    save_checkpoint(small(), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"dit\.pt is cut short"):
        load_checkpoint(file)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("patch", [1, 2])
def test_published_sizes_are_told_by_their_shapes(name: str, patch: int) -> None:
    """Even without rotation and normalised queries, whose tensors would tell the heads."""
    width, depth, heads = SIZES[name]
    options = DitOptions(64, 16, patch, width, depth, heads, 4.0, 1000, False, True, False, True, True, False)
    with torch.device("meta"):
        tensors = DiT(options).state_dict()
    assert infer_options(tensors, HERE) == options
    assert size_name(options) == f"{name}/{patch}"
    assert size_name(replace(options, heads=4)) is None


def test_the_recipe_of_the_paper_is_a_published_size() -> None:
    values = yaml.safe_load((ROOT / "recipes" / "paper.yaml").read_text())["dit"]
    assert (values["width"], values["depth"], values["heads"]) == SIZES["XL"]
