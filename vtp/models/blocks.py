"""The transformer block shared by encoder and decoder: pre-norm, axial RoPE, SwiGLU or MLP, optional QK-norm and LayerScale.

Attention and RoPE in the manner of DINOv3 (arXiv 2508.10104): coordinates in (-1, 1), each axis normalised by its own side.
Letters: B batch, N tokens, P prefix tokens (class, registers) in front, D width, d head width, h w patch grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtp.compiling import compilable
from vtp.models import kernels


@dataclass(frozen=True)
class BlockOptions:
    """What a block is made of.

    Attributes:
        width: D.
        heads: D must be a multiple of 4 x heads, or RoPE cannot split it.
        mlp_ratio: hidden width over D, before the SwiGLU reduction by 2/3.
        ffn: mlp | swiglu | swiglu32 | swiglu64 | swiglu128; the number is the alignment of the hidden width.
        norm: rmsnorm (eps 1e-5) | layernorm (eps 1e-6) | layernormbf16 (eps 1e-5).
        qk_norm: RMS-normalise queries and keys per head.
        layer_scale: start value of LayerScale; 0 leaves it out.
        rope: dtype in which the table is made and applied: float32 | bfloat16 (the published weights').
    """

    width: int
    heads: int
    mlp_ratio: float
    ffn: str
    norm: str
    qk_norm: bool
    layer_scale: float
    rope: str


Table = tuple[Tensor, Tensor]
"""What a token's partner and the token itself are multiplied by, each (N, d): sine, negative in the left half, and cosine."""


RMS_EPS = 1e-5
SHORT = 64
"""Tokens below which attention goes to the kernels for short sequences (`benchmarks/attention.py`)."""
ALIGNED = 128
"""Channels of which the packed feed-forward's hidden width is a multiple."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight with float32 statistics (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    @compilable
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last dimension; `weight` may have more dimensions that broadcast."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=RMS_EPS).to(x.dtype) * weight.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """torch's, written out in compiled code on a GPU: its own form takes two passes over each row there, this one takes one."""

    def forward(self, x: Tensor) -> Tensor:
        if not kernels.wanted(x):
            return super().forward(x)
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (centred * scale * self.weight.float() + self.bias.float()).to(x.dtype)


def norm_layer(kind: str, width: int) -> nn.Module:
    """The normalisation called `kind`.

    Raises:
        ValueError: the kind is not known.
    """
    if kind == "rmsnorm":
        return RMSNorm(width)
    if kind in ("layernorm", "layernormbf16"):
        return LayerNorm(width, eps=1e-6 if kind == "layernorm" else 1e-5)
    raise ValueError(f"norm {kind!r} is not known; choose rmsnorm, layernorm or layernormbf16.")


class Rope(nn.Module):
    """Axial rotary position embedding: the sine and cosine table of a patch grid, made once per resolution.

    Half of the head width turns with the row, half with the column; pairs are (i, i + d/2).
    """

    periods: Tensor

    def __init__(self, head_width: int, dtype: str) -> None:
        super().__init__()
        self.head_width = head_width
        self.dtype = getattr(torch, dtype)
        self.reset()

    def reset(self, dtype: torch.dtype = torch.bfloat16) -> None:
        """Make the periods 100^(4j/d), j < d/4, computed in `dtype`: bfloat16 is what published files store.

        A table in float32 starts from the periods as they are held, so from rounded ones unless they were made in float32.
        """
        self._tables: dict[tuple, Table] = {}
        steps = torch.arange(self.head_width // 4, dtype=dtype)
        self.register_buffer("periods", 100.0 ** (2 * steps / (self.head_width // 2)))

    def forward(self, h: int, w: int, prefix: int) -> Table:
        """Factors of `rotate`, each (prefix + h * w, d), row-major over the grid; tokens in front do not turn."""
        key = (h, w, prefix, self.periods.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # what is made in that mode could never be used in a training
                sin, cos = self.waves(h, w)
                still = sin.new_zeros(prefix, sin.shape[1])
                left, right = sin.chunk(2, dim=1)
                self._tables[key] = torch.cat((still, torch.cat((-left, right), dim=1))), torch.cat((still + 1, cos))
        return self._tables[key]

    @torch.no_grad()
    def waves(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Sine and cosine of every place's angles, each (h * w, d)."""
        device, dtype = self.periods.device, self.dtype
        axes = [(torch.arange(0.5, side, device=device, dtype=dtype) / side) * 2 - 1 for side in (h, w)]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = 2 * math.pi * coordinates[:, :, None] / self.periods.to(dtype)
        angles = angles.flatten(1).tile(2)
        return angles.sin(), angles.cos()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turn queries and keys (..., d) to their tokens' places: pairs (i, i + d/2) by the angles of a table that broadcasts.

    A pair turns as (left * cos - right * sin, right * cos + left * sin). Partners are read by a flip, not by cutting and joining:
    compiled, it is one kernel with the norm before it.
    """
    sin, cos = table
    x = x.to(sin.dtype)
    partner = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x * cos + partner * sin


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention (B, heads, N, d), by the memory-efficient kernels where N is short: they are fastest there.

    Where bits are to repeat (`run.deterministic`) torch chooses among the kernels that the session has left it.
    """
    if q.is_cuda and q.shape[-2] < SHORT and not torch.are_deterministic_algorithms_enabled():
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, rows ordered queries | keys | values."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        width, self.heads = options.width, options.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if options.qk_norm:
            self.q_norm = RMSNorm(width // self.heads)
            self.k_norm = RMSNorm(width // self.heads)
        self.qk_norm = options.qk_norm

    def forward(self, x: Tensor, table: Table, asked: int | None = None) -> Tensor:
        """Tokens (B, N, D) after attention; of `asked` tokens in front, if not of all, as what they see of all."""
        batch, tokens, width = x.shape
        if asked is not None:
            return self._front(x, table, asked)
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        if self.qk_norm and kernels.wanted(qkv):
            weights = self.q_norm.weight, self.k_norm.weight
            q, k, v = kernels.heads_of(qkv, *weights, *table, RMS_EPS, interleaved=False)
        else:
            # Queries and keys stay together: their norm and turn are one kernel, and so is the way back.
            qk, v = qkv.split((2, 1), dim=2)
            if self.qk_norm:
                qk = rms_norm(qk, torch.stack((self.q_norm.weight, self.k_norm.weight))[:, None])
            sin, cos = (factor[:, None, None] for factor in table)
            q, k = rotate(qk, (sin, cos)).to(v.dtype).permute(2, 0, 3, 1, 4)
            v = v[:, :, 0].transpose(1, 2)
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))

    def _front(self, x: Tensor, table: Table, asked: int) -> Tensor:
        batch, tokens, width = x.shape
        (q_weight, kv_weight), (q_bias, kv_bias) = (part.split((width, 2 * width)) for part in (self.qkv.weight, self.qkv.bias))
        q = F.linear(x[:, :asked], q_weight, q_bias).unflatten(2, (self.heads, -1))
        k, v = F.linear(x, kv_weight, kv_bias).view(batch, tokens, 2, self.heads, width // self.heads).unbind(2)
        if self.qk_norm:
            q, k = rms_norm(q, self.q_norm.weight), rms_norm(k, self.k_norm.weight)
        sin, cos = (factor[:, None] for factor in table)
        q, k = rotate(q, (sin[:asked], cos[:asked])).to(v.dtype), rotate(k, (sin, cos)).to(v.dtype)
        x = attend(*(part.transpose(1, 2) for part in (q, k, v)))
        return self.proj(x.transpose(1, 2).reshape(batch, asked, width))


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        # Both gates in one product: the input is read once, and its gradient needs no sum.
        weight, bias = torch.cat((self.w1.weight, self.w2.weight)), torch.cat((self.w1.bias, self.w2.bias))
        if kernels.wanted(x):
            return self.w3(kernels.gated_plus(F.linear(x, weight), bias))
        return self.w3(gated(F.linear(x, weight, bias)))

    @torch.no_grad()
    def packed(self) -> PackedSwiGLU:
        """The same function for use only, of joined weights filled up with zeros to a width that matrix units like."""
        hidden, width = self.w1.weight.shape
        wide = -(-hidden // ALIGNED) * ALIGNED
        layer = PackedSwiGLU(width, wide).to(self.w1.weight.device)
        for parameter in layer.parameters():
            parameter.zero_()
        for part, start in ((self.w1, 0), (self.w2, wide)):
            layer.w12.weight[start : start + hidden] = part.weight
            layer.w12.bias[start : start + hidden] = part.bias
        layer.w3.weight[:, :hidden] = self.w3.weight
        layer.w3.bias.copy_(self.w3.bias)
        return layer.train(self.training).requires_grad_(False)


class PackedSwiGLU(nn.Module):
    """What `SwiGLU.packed` makes."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(gated(self.w12(x)))


def gated(both: Tensor) -> Tensor:
    """silu(gate) * value of gate and value side by side: (..., 2 H) -> (..., H)."""
    if kernels.wanted(both):
        return kernels.gated(both)
    gate, value = both.chunk(2, dim=-1)
    return F.silu(gate) * value


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)), exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def feed_forward(options: BlockOptions) -> nn.Module:
    """The feed-forward layer called `options.ffn`; SwiGLU takes 2/3 of the hidden width, rounded up to its alignment."""
    hidden = int(options.width * options.mlp_ratio)
    if options.ffn == "mlp":
        return Mlp(options.width, hidden)
    align = int(options.ffn.removeprefix("swiglu") or 8)
    return SwiGLU(options.width, -(-int(hidden * 2 / 3) // align) * align)


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + ls1(attn(norm1 x)), then x + ls2(mlp(norm2 x)).

    `keep` switches whole residual branches off per sample (stochastic depth, arXiv 1603.09382): (B, 2) factors, 0 for a dropped
    branch and 1 / (1 - rate) for a kept one, drawn by the caller so that no module draws.
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = norm_layer(options.norm, options.width)
        self.attn = Attention(options)
        self.norm2 = norm_layer(options.norm, options.width)
        self.mlp = feed_forward(options)
        scale = options.layer_scale
        self.ls1 = LayerScale(options.width, scale) if scale else nn.Identity()
        self.ls2 = LayerScale(options.width, scale) if scale else nn.Identity()

    def forward(self, x: Tensor, table: Table, keep: Tensor | None = None, asked: int | None = None) -> Tensor:
        """Tokens (B, N, D) after the block; of `asked` tokens in front, if not of all."""
        attended = self.ls1(self.attn(self.norm1(x), table, asked))
        x = x[:, :asked] + (attended if keep is None else attended * keep[:, 0, None, None].to(x.dtype))
        transformed = self.ls2(self.mlp(self.norm2(x)))
        return x + (transformed if keep is None else transformed * keep[:, 1, None, None].to(x.dtype))


def init_linear(module: nn.Module, generator: torch.Generator) -> None:
    """Truncated normal weights and zero biases for every linear layer and 1 x 1 convolution below `module`.

    The deviation is 0.02 for inputs 768 wide or wider, as published, and grows as the root of the width falls below: a narrow
    network with 0.02 starts with hardly any signal in its branches and loses its first hundreds of steps.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            std = 0.02 * max(1.0, 768 / layer.weight[0].numel()) ** 0.5
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
