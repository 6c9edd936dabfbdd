"""The pixel decoder: latents to pictures by a transformer and a pixel shuffle.

Parameter names are those of the published VTP weights below `pixel_decoder.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp.models.base import PixelDecoder
from vtp.models.blocks import Block, BlockOptions, Rope, init_linear, norm_layer


@dataclass(frozen=True)
class DecoderOptions:
    """Shape of the decoder: `patch` pixels a side for each latent place, `latent_channels` in, `depth` blocks."""

    patch: int
    depth: int
    latent_channels: int
    block: BlockOptions


class Decoder(PixelDecoder):
    """Latents (B, C, h, w) to ImageNet-normalised pictures (B, 3, h * patch, w * patch), unclamped."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.options = options
        width = options.block.width
        self.proj_in = nn.Conv2d(options.latent_channels, width, 1)
        self.rope_embed = Rope(width // options.block.heads, options.block.rope)
        self.blocks = nn.ModuleList(Block(options.block) for _ in range(options.depth))
        self.norm = norm_layer(options.block.norm, width)
        self.proj_out = nn.Conv2d(width, 3 * options.patch**2, 1)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal (std 0.02) everywhere, zero biases."""
        init_linear(self, generator)

    def hidden(self, latents: Tensor) -> Tensor:
        """Input of the last layer, (B, D, h, w): what the adaptive GAN weight needs beside the output's gradient."""
        h, w = latents.shape[-2:]
        x = self.proj_in(latents).flatten(2).transpose(1, 2)
        table = self.rope_embed(h, w, 0)
        for block in self.blocks:
            x = block(x, table)
        return self.norm(x).transpose(1, 2).unflatten(2, (h, w))

    @property
    def last(self) -> nn.Conv2d:
        return self.proj_out

    def arranged(self, output: Tensor) -> Tensor:
        """(B, 3 * patch^2, h, w) -> (B, 3, h * patch, w * patch)."""
        return F.pixel_shuffle(output, self.options.patch)
