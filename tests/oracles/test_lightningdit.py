"""LightningDiT's forward pass at every depth, its guided pass, its label dropout, and its architecture told by its tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare
from tests.oracles.published_dit import NAMES, reference, settings
from vtp.models.dit import DiT
from vtp.models.dit_blocks import hidden_width
from vtp.models.lightningdit import constructor_arguments
from vtp.sampling import guided

INPUTS = {"x", "t", "y", "cfg.x", "cfg.y", "cfg.scale", "cfg.interval_start", "cfg.t_below", "cfg.t_above", "drop.ids"}
GUIDED = {"cfg.out_no_interval", "cfg.out_interval_below", "cfg.out_interval_above"}


@pytest.mark.parametrize("name", NAMES)
def test_tensors_tell_the_arguments_of_the_constructor(name: str) -> None:
    options, theirs = reference(name)[0].options, settings(name)["cfg"]
    ours = constructor_arguments(options)
    assert {key: theirs[key] for key in ours if key != "mlp_ratio"} == {key: ours[key] for key in ours if key != "mlp_ratio"}
    width, gated = theirs["hidden_size"], theirs["use_swiglu"]
    assert hidden_width(width, options.mlp_ratio, gated) == hidden_width(width, theirs["mlp_ratio"], gated)


@pytest.mark.parametrize("name", NAMES)
def test_forward_at_every_depth(compare: Compare, name: str) -> None:
    model, io = reference(name)
    seen: dict[str, Tensor] = {}

    def watch(key: str):
        return lambda module, arguments, output: seen.__setitem__(key, output)

    def watch_block(key: str):
        # A block hands on the last addition, which the next one makes.
        return lambda module, arguments, output: seen.__setitem__(key, output[0] + output[1][:, None] * output[2])

    for key, module in (
        ("tokens_in", model.x_embedder),
        ("t_embed", model.t_embedder),
        ("y_embed", model.y_embedder),
        ("final_tokens", model.final_layer),
    ):
        module.register_forward_hook(watch(key))
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(watch_block(f"block{i}_out"))
    with torch.no_grad():
        compare(name, "out", model(io["x"], io["t"], io["y"]), io["out"])
    seen["tokens_in"] = seen["tokens_in"] + model.pos_embed
    seen["t_frequencies"] = model.t_embedder.features(io["t"])
    for key, value in seen.items():
        compare(name, f"debug.{key}", value, io[f"debug.{key}"])
    rest = set(io) - INPUTS - GUIDED - {"out", "drop.y_embed"}
    assert rest == {f"debug.{key}" for key in seen}


@pytest.mark.parametrize("name", NAMES)
def test_dropped_labels_read_the_null_row(compare: Compare, name: str) -> None:
    model, io = reference(name)
    labels = torch.where(io["drop.ids"] == 1, model.options.num_classes, io["y"])
    compare(name, "drop.y_embed", model.y_embedder(labels), io["drop.y_embed"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", sorted(GUIDED))
def test_guided_forward(compare: Compare, name: str, output: str) -> None:
    """The stored batch is doubled: its second half keeps the unconditional prediction in the channels that are not guided."""
    model, io = reference(name)
    pairs, null = len(io["cfg.x"]) // 2, model.options.num_classes
    assert (io["cfg.y"][pairs:] == null).all()
    start = 0.0 if output == "cfg.out_no_interval" else io["cfg.interval_start"].item()
    times = io["cfg.t_above" if output == "cfg.out_interval_above" else "cfg.t_below"]
    x, labels, t = io["cfg.x"][:pairs], io["cfg.y"][:pairs], times[0].item()
    velocity = guided(model, labels, null, scale=io["cfg.scale"].item(), interval=(start, 1.0), channels=3)
    with torch.no_grad():
        kept = velocity(x, t)
        unconditional = model(x, times[:pairs], torch.full_like(labels, null))
    dropped = torch.cat([kept[:, :3], unconditional[:, 3:]], 1)
    compare(name, output, torch.cat([kept, dropped]), io[output])


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_computed_as_they_were_stored(compare: Compare, name: str) -> None:
    model, _ = reference(name)
    stored, fresh = load_file(FOLDER / name / "model.safetensors"), DiT(model.options).state_dict()
    for key in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        if key in stored:
            compare(name, f"model:{key}", fresh[key], stored[key])
