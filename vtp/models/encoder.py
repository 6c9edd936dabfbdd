"""The vision transformer that reads pictures: class token, registers, patches; a linear bottleneck makes the latent.

Parameter names are those of the published VTP weights below `trunk.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp.compiling import compilable
from vtp.models import kernels
from vtp.models.blocks import Block, BlockOptions, Rope, Table, init_linear, norm_layer


@dataclass(frozen=True)
class EncoderOptions:
    """Shape of the encoder.

    Attributes:
        patch: side of a patch in pixels = the downsampling factor.
        depth: number of blocks.
        latent_channels: C; equal to the width means there is no bottleneck layer.
        registers: learned tokens that take part in attention and are thrown away (arXiv 2309.16588).
    """

    patch: int
    depth: int
    latent_channels: int
    registers: int
    block: BlockOptions


@dataclass(frozen=True)
class Features:
    """What the encoder says of a picture, after the final norm: `cls` (B, D) and `patches` (B, N, D)."""

    cls: Tensor
    patches: Tensor


class PatchEmbed(nn.Module):
    """Cut a picture into patches and project each: (B, 3, H, W) -> (B, N, D), row-major."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        if not kernels.wanted(images):
            return self.proj(images).flatten(2).transpose(1, 2)
        # Cut out and cast in one pass, a product like any other, and so is its gradient.
        p = self.proj.kernel_size[0]
        pixels = images.unflatten(2, (-1, p)).unflatten(4, (-1, p)).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, 3, p, p)
        return F.linear(pixels.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """ViT with RoPE. Input pictures are ImageNet-normalised (B, 3, H, W), H and W multiples of the patch."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.options = options
        width = options.block.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, width))
        if options.registers:
            self.storage_tokens = nn.Parameter(torch.empty(1, options.registers, width))
        self.patch_embed = PatchEmbed(options.patch, width)
        self.rope_embed = Rope(width // options.block.heads, options.block.rope)
        self.blocks = nn.ModuleList(Block(options.block) for _ in range(options.depth))
        self.norm = norm_layer(options.block.norm, width)
        if options.latent_channels != width:
            self.feature_bottleneck = nn.Linear(width, options.latent_channels, bias=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal linears; the patch projection keeps its uniform fan-in range; the mask token starts at zero."""
        init_linear(self, generator)
        bound = (3 * self.options.patch**2) ** -0.5
        for tensor in (self.patch_embed.proj.weight, self.patch_embed.proj.bias):
            assert tensor is not None
            tensor.uniform_(-bound, bound, generator=generator)
        self.cls_token.normal_(std=0.02, generator=generator)
        self.mask_token.zero_()
        if self.options.registers:
            self.storage_tokens.normal_(std=0.02, generator=generator)

    def forward(
        self, images: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, *, patches: bool = True
    ) -> Features:
        """Features of pictures.

        Args:
            images: (B, 3, H, W), ImageNet-normalised.
            mask: (B, N) bool, True = hidden: these patches are replaced by the mask token.
            keep: (B, depth, 2) factors of the residual branches (stochastic depth), drawn by the caller.
            patches: False: nobody reads them; the last block then makes the class token alone, and `patches` has none.
        """
        x, table, prefix = self.embed(images, mask)
        for i, block in enumerate(self.blocks):
            asked = None if patches or i + 1 < len(self.blocks) else 1
            x = block(x, table, None if keep is None else keep[:, i], asked)
        x = self.norm(x)
        return Features(x[:, 0], x[:, prefix:])

    def embed(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Table, int]:
        """Tokens (B, P + N, D) that enter the first block, the RoPE table, and P."""
        h, w = (side // self.options.patch for side in images.shape[-2:])
        prefix = 1 + self.options.registers
        return self._tokens(images, mask), self.rope_embed(h, w, prefix), prefix

    @compilable
    def _tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        x = self.patch_embed(images)
        if mask is None:
            # A zero times the mask token: every parameter has a gradient in every pass.
            cls = self.cls_token + 0 * self.mask_token
        else:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
            cls = self.cls_token
        front = [cls.expand(len(x), -1, -1).to(x.dtype)]
        if self.options.registers:
            front.append(self.storage_tokens.expand(len(x), -1, -1).to(x.dtype))
        return torch.cat([*front, x], dim=1)

    def intermediate(self, images: Tensor, layers: list[int], normalize: bool) -> list[Features]:
        """Features after the blocks numbered in `layers`, in ascending order, with or without the final norm."""
        x, table, prefix = self.embed(images)
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x, table)
            if i in layers:
                y = self.norm(x) if normalize else x
                found.append(Features(y[:, 0], y[:, prefix:]))
        return found

    def bottleneck(self, features: Tensor) -> Tensor:
        """Latent channels of any features: (..., D) -> (..., C); the identity when C = D."""
        width = self.options.block.width
        return features if self.options.latent_channels == width else self.feature_bottleneck(features)

    def latents(self, features: Features, h: int, w: int) -> Tensor:
        """The latent picture (B, C, h, w) of patch features on an h x w grid."""
        return self.bottleneck(features.patches).transpose(1, 2).unflatten(2, (h, w))
