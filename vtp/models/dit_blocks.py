"""What a diffusion transformer over latent grids is made of, and the options that shape it.

Names of parameters and buffers are those of the published LightningDiT checkpoints (arXiv 2501.01423).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp.models import kernels, kernels_norm

EPS = 1e-6
"""Added to mean squares in every RMS norm."""
FREQUENCIES = 256
"""Channels that tell the time before the first layer of `TimeEmbed`."""


@dataclass(frozen=True)
class DitOptions:
    """The shape of a diffusion transformer.

    `grid` counts latent positions per side before patching, `patch` those on the side of one token; `shift` lets the adaptive
    norms shift as well as scale; `learn_sigma` adds output channels that published checkpoints carry and nobody reads.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    latent_channels: int
    grid: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    num_classes: int
    qk_norm: bool
    swiglu: bool
    rope: bool
    rmsnorm: bool
    shift: bool
    learn_sigma: bool

    def __post_init__(self) -> None:
        if self.grid % self.patch:
            raise ValueError(f"patch={self.patch} does not divide grid={self.grid}; use a divisor.")
        if self.width % (step := width_step(self.heads, self.rope)):
            raise ValueError(f"width={self.width} does not divide by {step}, as heads={self.heads} needs.")

    @property
    def side(self) -> int:
        """Tokens per side."""
        return self.grid // self.patch


def width_step(heads: int, rope: bool) -> int:
    """What the width is a multiple of: positions take quarters of it, rotary ones quarters of every head."""
    return 4 * heads if rope else math.lcm(4, heads)


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, with a weight per channel (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # One type for both arguments: the fused kernel takes no mixture of bfloat16 and float32.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), EPS)


def block_norm(options: DitOptions) -> nn.Module:
    """The norm whose scale and shift come from the conditioning."""
    return RMSNorm(options.width) if options.rmsnorm else nn.LayerNorm(options.width, eps=1e-6, elementwise_affine=False)


def head_norm(options: DitOptions) -> nn.Module:
    """The norm of queries and keys, per head."""
    if not options.qk_norm:
        return nn.Identity()
    width = options.width // options.heads
    return RMSNorm(width) if options.rmsnorm else nn.LayerNorm(width)


def position_table(width: int, side: int) -> Tensor:
    """Sine-cosine positions (1, side^2, width): one half of the channels tells the column, the other the row."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = axis.repeat(side, 1), axis.repeat_interleave(side, 0)
    return torch.cat([columns, rows], 1)[None].float()


def rotary_angles(head_width: int, side: int) -> Tensor:
    """Angles (side^2, head_width) in radians: one half of a head turns with the row, the other with the column.

    Neighbouring channels 2i and 2i + 1 form a plane and share an angle (EVA, arXiv 2303.11331).
    """
    half = head_width // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    axis = (torch.arange(side, dtype=torch.float64)[:, None] * frequencies).repeat_interleave(2, 1)
    return torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], 1)


class Rope(nn.Module):
    """Rotary positions of a square grid (arXiv 2104.09864), their tables kept as published checkpoints keep them."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, side: int) -> None:
        super().__init__()
        self.head_width, self.side = head_width, side
        self.register_buffer("freqs_cos", torch.empty(side * side, head_width))
        self.register_buffer("freqs_sin", torch.empty(side * side, head_width))
        self.fill_tables()

    def fill_tables(self) -> None:
        angles = rotary_angles(self.head_width, self.side)
        self.freqs_cos.copy_(angles.cos())
        self.freqs_sin.copy_(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turn queries or keys (B, heads, N, head width), in the precision of the tables."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.freqs_cos + torch.stack([-odd, even], -1).flatten(-2) * self.freqs_sin


class Attention(nn.Module):
    """Self-attention of all tokens with optional rotary positions and normalised queries and keys."""

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.qkv = nn.Linear(options.width, 3 * options.width)
        self.q_norm, self.k_norm = head_norm(options), head_norm(options)
        self.proj = nn.Linear(options.width, options.width)

    def forward(self, x: Tensor, rope: Rope | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm) and rope is not None and kernels.wanted(qkv):
            weights = self.q_norm.weight, self.k_norm.weight
            q, k, v = kernels.heads_of(qkv, *weights, rope.freqs_sin, rope.freqs_cos, EPS, interleaved=True)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q, k = self.q_norm(q), self.k_norm(k)
            if rope is not None:
                q, k = rope(q), rope(k)
        attended = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward (arXiv 2002.05202), two thirds as wide as its plain counterpart."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        if kernels.wanted(x):
            return self.w3(kernels.gated_plus(F.linear(x, self.w12.weight), self.w12.bias))
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Mlp(nn.Module):
    """Feed-forward of two layers with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def hidden_width(width: int, mlp_ratio: float, swiglu: bool) -> int:
    """Channels inside the feed-forward; the gated one takes two thirds, without rounding to a multiple of anything."""
    hidden = int(mlp_ratio * width)
    return int(2 / 3 * hidden) if swiglu else hidden


def feed_forward(options: DitOptions) -> nn.Module:
    hidden = hidden_width(options.width, options.mlp_ratio, options.swiglu)
    return SwiGLU(options.width, hidden) if options.swiglu else Mlp(options.width, hidden)


def modulation(options: DitOptions, parts: int) -> nn.Sequential:
    """From the conditioning (B, D) to `parts` vectors of the same width."""
    return nn.Sequential(nn.SiLU(), nn.Linear(options.width, parts * options.width))


def modulate(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """x (B, N, D) times 1 + scale, plus shift, both (B, D)."""
    scale = 1 + scale[:, None]
    return x * scale if shift is None else torch.addcmul(shift[:, None], x, scale)


def added_norm(
    x: Tensor, gate: Tensor, added: Tensor, norm: nn.Module, scale: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum x + gate * added, of (B, N, D), (B, D), (B, N, D), and its modulated norm."""
    if isinstance(norm, RMSNorm) and kernels.wanted(x):
        return kernels_norm.added_norm(x, gate, added, norm.weight, scale, shift, EPS)
    x = torch.addcmul(x, gate[:, None], added)
    return x, modulate(norm(x), scale, shift)


class Block(nn.Module):
    """Attention and feed-forward; the conditioning scales, shifts and gates each of them.

    What the feed-forward adds is handed to the next block, which adds it as it reads the sum for its norm. Compiled block by
    block, the sum of all is then read and written once less.
    """

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.shift = options.shift
        self.norm1, self.norm2 = block_norm(options), block_norm(options)
        self.attn = Attention(options)
        self.mlp = feed_forward(options)
        self.adaLN_modulation = modulation(options, 6 if options.shift else 4)

    def forward(
        self, x: Tensor, gate: Tensor, added: Tensor, condition: Tensor, rope: Rope | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum so far is x + gate * added, of (B, N, D), (B, D), (B, N, D); with condition (B, D) -> the same three, later."""
        vectors = self.adaLN_modulation(condition)
        shift_a: Tensor | None = None
        shift_m: Tensor | None = None
        if self.shift:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors.chunk(6, -1)
        else:
            scale_a, gate_a, scale_m, gate_m = vectors.chunk(4, -1)
        x, normed = added_norm(x, gate, added, self.norm1, scale_a, shift_a)
        x, normed = added_norm(x, gate_a, self.attn(normed, rope), self.norm2, scale_m, shift_m)
        return x, gate_m, self.mlp(normed)


class PatchEmbed(nn.Module):
    """Latents (B, C, h, w) cut into patches, each mapped to a token: (B, N, D)."""

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.patch = options.patch
        self.proj = nn.Conv2d(options.latent_channels, options.width, options.patch, options.patch)

    def forward(self, x: Tensor) -> Tensor:
        # The convolution as a matrix product: its output would have the channels outermost, and every later norm would stride.
        p = self.patch
        patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def time_frequencies() -> Tensor:
    """128 geometric frequencies from 1 down to almost 1/10000, in radians per unit of time."""
    return torch.exp(-math.log(10000) * torch.arange(FREQUENCIES // 2, dtype=torch.float32) / (FREQUENCIES // 2))


class TimeEmbed(nn.Module):
    """Times (B,) in [0, 1], taken as they are, as vectors (B, D)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("frequencies", torch.empty(FREQUENCIES // 2), persistent=False)
        self.fill_tables()

    def fill_tables(self) -> None:
        self.frequencies.copy_(time_frequencies())

    def features(self, t: Tensor) -> Tensor:
        """Cosines, then sines, of the times at geometric frequencies: (B, 256)."""
        angles = t[:, None].float() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.features(t))


class LabelEmbed(nn.Module):
    """Classes (B,) as vectors (B, D); the last row stands for no class."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """Tokens (B, N, D) to the values of their patches (B, N, patch * patch * C)."""

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        channels = options.latent_channels * (2 if options.learn_sigma else 1)
        self.norm_final = block_norm(options)
        self.linear = nn.Linear(options.width, options.patch**2 * channels)
        self.adaLN_modulation = modulation(options, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return self.linear(modulate(self.norm_final(x), scale, shift))
