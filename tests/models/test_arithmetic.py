"""The networks beside naive forms of them, written down from the papers over plain tensors, whatever options they are built of.

The published code gave tensors for four sets of options (`tests/oracles`); here is every other.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.test_dit import SMALL
from tests.models.test_official import OPTIONS, built, pictures
from vtp import VisualTokenizer
from vtp.models.blocks import BlockOptions, norm_layer
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions, block_norm
from vtp.models.dit_blocks import head_norm as per_head
from vtp.models.tokenizer import MEAN, STD
from vtp.seeding import generator

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w.get(f"{name}.bias", torch.zeros(()))


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def standardized(x: Tensor, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads * d)."""
    return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads_of(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, N, d) side by side in (B, N, 3 D)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in x.chunk(3, -1))
    return q, k, v


def changed(model: torch.nn.Module, seed: int) -> Weights:
    """Give every parameter a value of its own, norms and tokens too; all tensors by name."""
    draw = generator(seed, "weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5, generator=draw)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.state_dict()


# the tokenizer's encoder and decoder


def tokenizer_norm(w: Weights, name: str, kind: str, x: Tensor) -> Tensor:
    if kind == "rmsnorm":
        return rms(x, w[f"{name}.weight"], 1e-5)
    return standardized(x, {"layernorm": 1e-6, "layernormbf16": 1e-5}[kind]) * w[f"{name}.weight"] + w[f"{name}.bias"]


def turned(x: Tensor, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Queries or keys of h x w patches, what stands in front of them left as it is: everything in `dtype`, number by number."""
    width = x.shape[-1]
    front = x.shape[2] - h * w
    periods = (100.0 ** (2 * torch.arange(width // 4, dtype=torch.bfloat16) / (width // 2))).to(dtype)  # as files hold them
    out = x.to(dtype)
    for row in range(h):
        for column in range(w):
            places = [2 * (torch.tensor(i + 0.5, dtype=dtype) / side) - 1 for i, side in ((row, h), (column, w))]
            angles = torch.cat([2 * math.pi * place / periods for place in places])
            a, b = out[:, :, front + row * w + column].chunk(2, -1)
            turned_ = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
            out = out.index_copy(2, torch.tensor([front + row * w + column]), turned_[:, :, None])
    return out.to(x.dtype)


def feed_forward(w: Weights, name: str, o: BlockOptions, x: Tensor) -> Tensor:
    hidden = int(o.width * o.mlp_ratio)
    if o.ffn == "mlp":
        assert w[f"{name}.fc1.weight"].shape == (hidden, o.width)
        x = linear(w, f"{name}.fc1", x)
        return linear(w, f"{name}.fc2", x * (1 + torch.erf(x / math.sqrt(2))) / 2)
    step = {"swiglu": 8, "swiglu32": 32, "swiglu64": 64, "swiglu128": 128}[o.ffn]
    assert len(w[f"{name}.w1.weight"]) == math.ceil(int(hidden * 2 / 3) / step) * step
    gate = linear(w, f"{name}.w1", x)
    return linear(w, f"{name}.w3", gate * gate.sigmoid() * linear(w, f"{name}.w2", x))


def blocks(w: Weights, side: str, o: BlockOptions, depth: int, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """Tokens after each block."""
    found, dtype = [], getattr(torch, o.rope)
    for i in range(depth):
        name = f"{side}.blocks.{i}"
        q, k, v = heads_of(linear(w, f"{name}.attn.qkv", tokenizer_norm(w, f"{name}.norm1", o.norm, x)), o.heads)
        if o.qk_norm:
            q, k = rms(q, w[f"{name}.attn.q_norm.weight"], 1e-5), rms(k, w[f"{name}.attn.k_norm.weight"], 1e-5)
        y = attention(turned(q, *grid, dtype), turned(k, *grid, dtype), v)
        x = x + linear(w, f"{name}.attn.proj", y) * (w[f"{name}.ls1.gamma"] if o.layer_scale else 1)
        y = feed_forward(w, f"{name}.mlp", o, tokenizer_norm(w, f"{name}.norm2", o.norm, x))
        x = x + y * (w[f"{name}.ls2.gamma"] if o.layer_scale else 1)
        found.append(x)
    return found


def encoded(w: Weights, model: VisualTokenizer, pixels: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Tokens after each block, class token first."""
    o, p = model.options.encoder, model.options.encoder.patch
    images = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    h, width = images.shape[2] // p, images.shape[3] // p
    cut = [images[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p].flatten(1) for i in range(h) for j in range(width)]
    x = linear(w, "encoder.patch_embed.proj", torch.stack(cut, 1))
    if mask is not None:
        x = torch.where(mask[..., None], w["encoder.mask_token"], x)
    front = [w["encoder.cls_token"], *([w["encoder.storage_tokens"]] if o.registers else [])]
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in front), x], 1)
    return blocks(w, "encoder", o.block, o.depth, x, (h, width))


def bottlenecked(w: Weights, x: Tensor) -> Tensor:
    return linear(w, "encoder.feature_bottleneck", x) if "encoder.feature_bottleneck.weight" in w else x


def decoded(w: Weights, model: VisualTokenizer, latents: Tensor) -> Tensor:
    """Pixels, painted patch by patch."""
    o = model.options.decoder
    assert o is not None
    (h, width), p = latents.shape[2:], o.patch
    x = linear(w, "decoder.proj_in", latents.flatten(2).mT)
    x = blocks(w, "decoder", o.block, o.depth, x, (h, width))[-1]
    x = linear(w, "decoder.proj_out", tokenizer_norm(w, "decoder.norm", o.block.norm, x))
    rows = [torch.cat([x[:, i * width + j].unflatten(1, (3, p, p)) for j in range(width)], 3) for i in range(h)]
    return torch.cat(rows, 2) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm", "layernormbf16"])
@torch.no_grad()
def test_small_numbers_tell_what_a_norm_adds_to_the_variance(kind: str) -> None:
    norm = norm_layer(kind, 16)
    w = {f"norm.{name}": tensor for name, tensor in changed(norm, 0).items()}
    for size in (1.0, 1e-2, 1e-3):
        x = size * torch.randn(5, 16, generator=generator(0, "x"))
        torch.testing.assert_close(norm(x), tokenizer_norm(w, "norm", kind, x), atol=1e-5, rtol=1e-5)


def mixture(seed: int) -> dict[str, Any]:
    """Several options at once, and other sizes."""
    draw = random.Random(seed)
    sizes = {
        "vision_patch_size": draw.choice([4, 7, 16]),
        "vision_depth": draw.choice([1, 3]),
        "vision_num_heads": draw.choice([1, 2, 6]),
    }
    return {key: value for one in draw.sample(OPTIONS, 8) for key, value in one.items() if key != "text_pool_type"} | sizes


@pytest.mark.parametrize("rope", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [*OPTIONS, *map(mixture, range(8))], ids=str)
@torch.no_grad()
def test_a_tokenizer_is_its_naive_form(changes: dict[str, Any], rope: str) -> None:
    model = built(**changes | {"open_vtp": changes.get("open_vtp", {}) | {"rope": rope}})
    w, options = changed(model, 0), model.options
    p, front = options.encoder.patch, 1 + options.encoder.registers
    pixels = pictures(2 * p, 3 * p)

    def same(ours: Tensor, naive: Tensor) -> None:
        # A last bit of float32 flips single roundings to bfloat16.
        torch.testing.assert_close(ours, naive, atol=2e-5 if rope == "float32" else 1e-2, rtol=2e-5)
        assert (ours - naive).abs().mean() < (1e-5 if rope == "float32" else 5e-4)

    def last(x: Tensor) -> Tensor:
        return tokenizer_norm(w, "encoder.norm", options.encoder.block.norm, x)

    each = encoded(w, model, pixels)
    found = last(each[-1])
    features = model.features(pixels)
    same(features.cls, found[:, 0])
    same(features.patches, found[:, front:])
    latents = bottlenecked(w, found[:, front:]).mT.unflatten(2, (2, 3))
    same(model.encode(pixels), latents)
    for ours, naive in zip(model.intermediate_features(pixels, options.encoder.depth), each, strict=True):
        same(ours.patches, last(naive)[:, front:])
    mask = torch.arange(12).view(2, 6) % 3 == 1
    hidden = model.encoder((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], mask)
    same(hidden.patches, last(encoded(w, model, pixels, mask)[-1])[:, front:])
    if options.decoder:
        same(model.decode(latents), decoded(w, model, latents))
    if options.text:
        read = found[:, 0] if options.clip_feature == "cls" else found[:, front:].mean(1)
        read = bottlenecked(w, read) if options.bottleneck_for_all else read
        same(model.encode_image(pixels, normalize=False), read @ w["visual_proj.weight"].T)
        same(model.encode_image(pixels), F.normalize(read @ w["visual_proj.weight"].T, dim=-1, eps=1e-12))


# the diffusion transformer


def positions(o: DitOptions) -> Tensor:
    """(N, D): sines and cosines of the column, then those of the row."""
    quarter = o.width // 4
    turns = [10000 ** (-i / quarter) for i in range(quarter)]
    rows = [
        [wave(place * turn) for place in (column, row) for wave in (math.sin, math.cos) for turn in turns]
        for row in range(o.side)
        for column in range(o.side)
    ]
    return torch.tensor(rows)


def spun(x: Tensor, o: DitOptions) -> Tensor:
    """Queries or keys: neighbouring channels turn together, half of them by the row, half by the column."""
    half, out = x.shape[-1] // 2, x.clone()
    for token in range(o.side**2):
        for i in range(half):
            place = token // o.side if 2 * i < half else token % o.side
            angle = place * 10000 ** (-(2 * i % half) / half)
            a, b = x[:, :, token, 2 * i], x[:, :, token, 2 * i + 1]
            out[:, :, token, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, token, 2 * i + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def dit_norm(w: Weights, name: str, o: DitOptions, x: Tensor) -> Tensor:
    return rms(x, w[f"{name}.weight"], 1e-6) if o.rmsnorm else standardized(x, 1e-6)


def head_norm(w: Weights, name: str, o: DitOptions, x: Tensor) -> Tensor:
    if o.rmsnorm:
        return rms(x, w[f"{name}.weight"], 1e-6)
    return standardized(x, 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def dit_block(w: Weights, name: str, o: DitOptions, x: Tensor, condition: Tensor) -> Tensor:
    vectors = linear(w, f"{name}.adaLN_modulation.1", F.silu(condition))[:, None].chunk(6 if o.shift else 4, -1)
    scale_a, gate_a, scale_m, gate_m = vectors[1:3] + vectors[4:] if o.shift else vectors
    shift_a, shift_m = (vectors[0], vectors[3]) if o.shift else (0, 0)
    y = dit_norm(w, f"{name}.norm1", o, x) * (1 + scale_a) + shift_a
    q, k, v = heads_of(linear(w, f"{name}.attn.qkv", y), o.heads)
    if o.qk_norm:
        q, k = head_norm(w, f"{name}.attn.q_norm", o, q), head_norm(w, f"{name}.attn.k_norm", o, k)
    if o.rope:
        q, k = spun(q, o), spun(k, o)
    x = x + gate_a * linear(w, f"{name}.attn.proj", attention(q, k, v))
    y = dit_norm(w, f"{name}.norm2", o, x) * (1 + scale_m) + shift_m
    if o.swiglu:
        gate, value = linear(w, f"{name}.mlp.w12", y).chunk(2, -1)
        return x + gate_m * linear(w, f"{name}.mlp.w3", gate * gate.sigmoid() * value)
    y = linear(w, f"{name}.mlp.fc1", y)
    y = y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
    return x + gate_m * linear(w, f"{name}.mlp.fc2", y)


def velocity(w: Weights, o: DitOptions, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    p, cells = o.patch, [(i * o.patch, j * o.patch) for i in range(o.side) for j in range(o.side)]
    tokens = torch.stack([x[:, :, i : i + p, j : j + p].flatten(1) for i, j in cells], 1)
    tokens = linear(w, "x_embedder.proj", tokens) + positions(o)
    angles = t[:, None] * torch.tensor([10000 ** (-i / 128) for i in range(128)])
    time = F.silu(linear(w, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1)))
    condition = linear(w, "t_embedder.mlp.2", time) + w["y_embedder.embedding_table.weight"][labels]
    for i in range(o.depth):
        tokens = dit_block(w, f"blocks.{i}", o, tokens, condition)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, -1)
    values = linear(w, "final_layer.linear", dit_norm(w, "final_layer.norm_final", o, tokens) * (1 + scale) + shift)
    out = torch.empty(len(x), values.shape[2] // p**2, o.grid, o.grid)
    for n, (i, j) in enumerate(cells):  # the channels of a pixel lie side by side
        out[:, :, i : i + p, j : j + p] = values[:, n].unflatten(1, (p, p, -1)).permute(0, 3, 1, 2)
    return out[:, : o.latent_channels]


FLAGS = [name for name, value in asdict(SMALL).items() if isinstance(value, bool)]


@pytest.mark.parametrize("rmsnorm", [True, False])
@torch.no_grad()
def test_small_numbers_tell_what_a_transformers_norms_add_to_the_variance(rmsnorm: bool) -> None:
    o = replace(SMALL, rmsnorm=rmsnorm)
    for norm, naive, width in ((block_norm(o), dit_norm, o.width), (per_head(o), head_norm, o.width // o.heads)):
        w = {f"norm.{name}": tensor for name, tensor in changed(norm, 0).items()}
        for size in (1.0, 1e-2, 1e-3):
            x = size * torch.randn(5, width, generator=generator(0, "x"))
            torch.testing.assert_close(norm(x), naive(w, "norm", o, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_a_diffusion_transformer_is_its_naive_form(seed: int) -> None:
    draw = random.Random(seed)
    flags = {name: draw.random() < 0.5 for name in FLAGS}
    sizes = {"patch": draw.choice([1, 2, 3]), "depth": draw.choice([1, 3]), "mlp_ratio": draw.choice([4.0, 2.7])}
    width, heads = draw.choice([(24, 3), (16, 1), (36, 6)] if not flags["rope"] else [(24, 3), (16, 1), (32, 2)])
    o = replace(SMALL, **flags, **sizes, width=width, heads=heads, latent_channels=draw.choice([4, 5]))
    model = DiT(o)
    w = changed(model, seed)
    x = torch.randn(3, o.latent_channels, o.grid, o.grid, generator=generator(seed, "x"))
    t, labels = torch.tensor([0.0, 0.37, 1.0]), torch.tensor([0, 2, o.num_classes])
    torch.testing.assert_close(model(x, t, labels), velocity(w, o, x, t, labels), atol=2e-5, rtol=2e-5)
