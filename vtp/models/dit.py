"""A diffusion transformer over latent grids, conditioned on a time and a class.

The architecture is DiT (arXiv 2212.09748) as LightningDiT changed it (arXiv 2501.01423): RMS norms, SwiGLU and rotary positions
on top of adaptive layer norms. Names of parameters and buffers are those of the published checkpoints, which therefore load
strictly. The module draws no random numbers: labels are dropped by whoever trains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp import artifacts

FREQUENCIES = 256
FILES = ("config.json", "model.safetensors")
"""What a diffusion transformer is read from."""


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
        if self.width % (4 * self.heads):
            raise ValueError(f"width={self.width} does not divide by {4 * self.heads}, as heads={self.heads} needs.")

    @property
    def side(self) -> int:
        """Tokens per side."""
        return self.grid // self.patch


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, with a weight per channel (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # One type for both arguments: the fused kernel takes no mixture of bfloat16 and float32.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


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
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
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


class Block(nn.Module):
    """Attention and feed-forward; the conditioning scales, shifts and gates each of them."""

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.shift = options.shift
        self.norm1, self.norm2 = block_norm(options), block_norm(options)
        self.attn = Attention(options)
        self.mlp = feed_forward(options)
        self.adaLN_modulation = modulation(options, 6 if options.shift else 4)

    def forward(self, x: Tensor, condition: Tensor, rope: Rope | None) -> Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, D)."""
        vectors = self.adaLN_modulation(condition)
        shift_a: Tensor | None = None
        shift_m: Tensor | None = None
        if self.shift:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = vectors.chunk(6, -1)
        else:
            scale_a, gate_a, scale_m, gate_m = vectors.chunk(4, -1)
        x = torch.addcmul(x, gate_a[:, None], self.attn(modulate(self.norm1(x), scale_a, shift_a), rope))
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(self.norm2(x), scale_m, shift_m)))


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


class DiT(nn.Module):
    """Velocity of the flow from noise (t = 0) to latents (t = 1), given a class.

    `blocks` may be compiled or sharded one by one. The null label is `options.num_classes`.
    """

    pos_embed: Tensor

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.options = options
        self.x_embedder = PatchEmbed(options)
        self.register_buffer("pos_embed", torch.empty(1, options.side**2, options.width))
        self.t_embedder = TimeEmbed(options.width)
        self.y_embedder = LabelEmbed(options.num_classes, options.width)
        self.feat_rope = Rope(options.width // options.heads, options.side) if options.rope else None
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.final_layer = FinalLayer(options)
        self.fill_tables()

    def fill_tables(self) -> None:
        self.pos_embed.copy_(position_table(self.options.width, self.options.side))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every parameter and table from `generator`, which lives on the parameters' device.

        All gates and the output start at zero, so the network starts as the zero velocity (DiT, arXiv 2212.09748, section 3.2).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, RMSNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.ones_(module.weight)
            if isinstance(module, DiT | Rope | TimeEmbed):
                module.fill_tables()
        for name, parameter in self.named_parameters():
            if name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith(("bias", "adaLN_modulation.1.weight")) or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Latents x (B, C, h, w) at times t (B,) in [0, 1] with labels (B,) int64 -> velocity (B, C, h, w)."""
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(labels)
        for block in self.blocks:
            tokens = block(tokens, condition, self.feat_rope)
        side, patch = self.options.side, self.options.patch
        values = self.final_layer(tokens, condition).unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        picture = values.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return picture[:, : self.options.latent_channels]

    @classmethod
    def from_tensors(cls, options: DitOptions, tensors: Mapping[str, Tensor], where: Path) -> DiT:
        """A model around tensors by their published names, in float32, in eval mode and frozen, on the CPU.

        Nothing is copied that is in float32 already: mapped files stay mapped.

        Raises:
            ValueError: tensors that are missing, not known or of another shape, by name; `where` is the file to blame.
        """
        with torch.device("meta"):
            model = cls(options)
        expected = model.state_dict()
        missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
        if missing or unknown:
            raise ValueError(f"{where}: tensors missing: {listed(missing)}; not known: {listed(unknown)}.")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}.")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        model.t_embedder.frequencies = time_frequencies()  # the one table that is not stored
        return model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DiT:
        """Read what `save_pretrained` wrote, in eval mode and frozen, on the CPU.

        Weights are mapped from the file, not copied. Checksums are compared where a manifest lies beside them.

        Raises:
            ValueError: a missing, cut or changed file, another kind of model, an option that is unknown or missing, or tensors
                that do not fit the options; each by name.
        """
        artifacts.verify_listed(Path(folder), FILES)
        file = Path(folder) / "config.json"
        config = artifacts.load_json(file)
        known = {field.name for field in fields(DitOptions)}
        if odd := sorted(known ^ set(config)):
            kind = f"model_type={config['model_type']!r}" if "model_type" in config else f"look at {listed(odd)}"
            raise ValueError(f"{file} does not describe a diffusion transformer of this project ({kind}).")
        try:
            options = DitOptions(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        return cls.from_tensors(options, artifacts.load_tensors(Path(folder) / "model.safetensors"), Path(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors (published names) and config.json (the options), each whole or not at all.

        The configuration comes last, and one that was there goes first, so that it never describes other weights.
        """
        (Path(folder) / "config.json").unlink(missing_ok=True)
        artifacts.save_tensors(Path(folder) / "model.safetensors", self.state_dict())
        artifacts.save_json(Path(folder) / "config.json", asdict(self.options))


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first of many names, for an error."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
