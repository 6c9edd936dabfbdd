"""The published model, on every stored size and option: every tensor it gave, from our public methods where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FLOAT32, FOLDER, Compare, Tolerance, bfloat16_rope, names
from vtp import VisualTokenizer
from vtp.models.tokenizer import denormalize

FOLDERS = ("vtp_a", "vtp_b")
INPUTS = (".image", ".random_latents", "mask.masks", "mask.local_image", "text.tokens")
Made = dict[str, Tensor]


@cache
def stored(folder: str) -> Made:
    return load_file(FOLDER / folder / "io.safetensors")


@cache
def model(folder: str, rope: str) -> VisualTokenizer:
    return VisualTokenizer.from_pretrained(FOLDER / folder, rope=rope)  # type: ignore[arg-type]


@cache
def computed(folder: str) -> Made:
    """Everything the oracle holds but its inputs, by name."""
    io = stored(folder)
    sizes = [name.removesuffix(".image") for name in io if name.endswith(".image")]
    with torch.no_grad():
        made = dict(pair for size in sizes for pair in of_size(folder, size))
        return made | dict(masked(folder, "64x64")) | dict(contrast(folder, "64x64"))


def is_input(name: str) -> bool:
    return name.endswith(INPUTS)


def of_size(folder: str, size: str) -> Iterator[tuple[str, Tensor]]:
    io, m = stored(folder), model(folder, "bfloat16")
    image = io[f"{size}.image"]
    grid = [side // m.options.encoder.patch for side in image.shape[2:]]
    features = m.encoder(image)
    yield f"{size}.latents", m.encoder.latents(features, *grid)
    yield f"{size}.decoded", m.decoder(io[f"{size}.latents"])
    yield f"{size}.decoded_random", m.decoder(io[f"{size}.random_latents"])
    yield f"{size}.clip_image", m.project(features)
    yield f"{size}.clip_image_raw", m.project(features, normalize=False)
    for name, found in (("last", features.cls), ("last_bn", m.encoder.bottleneck(features.cls))):
        yield f"{size}.{name}.cls_token", found
    for name, found in (("last", features.patches), ("last_bn", m.encoder.bottleneck(features.patches))):
        yield f"{size}.{name}.patch_tokens", found
    depth = m.options.encoder.depth
    last = m.encoder.intermediate(image, [depth - 2, depth - 1], normalize=True)
    for i, found in enumerate(last):
        yield f"{size}.inter_last2.{i}.cls_token", found.cls
        yield f"{size}.inter_last2.{i}.patch_tokens", found.patches
    raw = m.encoder.intermediate(image, [0], normalize=False)[0]
    yield f"{size}.inter_idx0_raw_map", raw.patches.transpose(1, 2).unflatten(2, grid)
    yield f"{size}.linear_probe_input_n1", torch.cat([last[1].cls, last[1].patches.mean(1)], 1)
    yield f"{size}.linear_probe_input_n2", torch.cat([last[0].cls, last[1].cls, last[1].patches.mean(1)], 1)
    yield from inside(folder, size, grid)
    exact = model(folder, "float32")
    latents = exact.encoder.latents(exact.encoder(image), *grid)
    yield f"{size}.fp32rope.latents", latents
    yield f"{size}.fp32rope.decoded", exact.decoder(latents)
    yield f"{size}.fp32rope.clip_image", exact.project(exact.encoder(image))


def inside(folder: str, size: str, grid: list[int]) -> Iterator[tuple[str, Tensor]]:
    """RoPE tables, and the tokens before and after each block."""
    m, exact = model(folder, "bfloat16"), model(folder, "float32")
    for name, network in (("rope", m.encoder), ("dec_rope", m.decoder)):
        for kind, found in zip(("sin", "cos"), network.rope_embed.waves(*grid), strict=True):
            yield f"{size}.debug.{name}_{kind}_bf16", found
    for kind, found in zip(("sin", "cos"), exact.encoder.rope_embed.waves(*grid), strict=True):
        yield f"{size}.debug.rope_{kind}_fp32", found
    x, table, _ = m.encoder.embed(stored(folder)[f"{size}.image"])
    yield f"{size}.debug.tokens_in", x
    for i, block in enumerate(m.encoder.blocks):
        x = block(x, table)
        yield f"{size}.debug.block{i}_out", x


def masked(folder: str, size: str) -> Iterator[tuple[str, Tensor]]:
    io, m = stored(folder), model(folder, "bfloat16")
    features = m.encoder(io[f"{size}.image"], io["mask.masks"])
    yield "mask.global.cls_token", features.cls
    yield "mask.global.patch_tokens", features.patches
    x, table, _ = m.encoder.embed(io[f"{size}.image"], io["mask.masks"])
    for block in m.encoder.blocks:
        x = block(x, table)
    yield "mask.global.prenorm", x
    # One call on crops of several sizes is one call for each size.
    yield "mask.list.global_cls", features.cls
    small = m.encoder(io["mask.local_image"])
    yield "mask.list.local_cls", small.cls
    yield "mask.list.local_patch_tokens", small.patches


def contrast(folder: str, size: str) -> Iterator[tuple[str, Tensor]]:
    io, m = stored(folder), model(folder, "bfloat16")
    tokens = io["text.tokens"]
    yield "text.clip_text", m.encode_text(tokens)
    yield "text.clip_text_raw", m.encode_text(tokens, normalize=False)
    logits = m.logits(denormalize(io[f"{size}.image"]), tokens)
    yield "logits.per_image", logits
    yield "logits.per_text", logits.T
    yield "forward.logit_scale_exp", m.logit_scale.exp()
    if m.options.logit.bias is not None:
        yield "forward.logit_bias", m.logit_bias


def tolerance(folder: str, name: str) -> Tolerance:
    if name.endswith("_bf16"):
        return Tolerance(0, 0)
    if name.startswith(("text.", "forward.")) or "fp32" in name or name.endswith("tokens_in"):
        return FLOAT32
    return bfloat16_rope()


@pytest.mark.parametrize(
    ("folder", "name"), [(folder, name) for folder in FOLDERS for name in names(folder) if not is_input(name)]
)
def test_published_model(compare: Compare, folder: str, name: str) -> None:
    compare(folder, name, computed(folder)[name], stored(folder)[name], tolerance(folder, name))


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_stored_is_left_out(folder: str) -> None:
    assert {name for name in stored(folder) if not is_input(name)} == computed(folder).keys()
