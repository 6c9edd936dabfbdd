"""What the pipeline asks of a tokenizer once it is pre-trained, whatever its networks are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:  # a card describes options, which describe decoders
    from vtp.models.card import Card


class PixelDecoder(nn.Module, ABC):
    """Latents (B, C, h, w) to ImageNet-normalised pictures (B, 3, H, W), unclamped; the last layer stands apart.

    The GAN stage needs that layer's input and output: its adaptive weight is taken at that layer.
    """

    @abstractmethod
    def hidden(self, latents: Tensor) -> Tensor:
        """Input of the last layer, (B, D, ...)."""

    @property
    @abstractmethod
    def last(self) -> nn.Conv2d:
        """The last layer, a convolution without stride."""

    @abstractmethod
    def arranged(self, output: Tensor) -> Tensor:
        """The last layer's output as ImageNet-normalised pictures (B, 3, H, W)."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.arranged(self.last(self.hidden(latents)))


class Tokenizer(nn.Module, ABC):
    """Pictures to latents and back. B pictures, C latent channels, p the downsampling factor."""

    decoder: PixelDecoder

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels it was trained at; any multiple of the factor will do."""

    @property
    @abstractmethod
    def downsample(self) -> int:
        """Pixels a side of one place of the latent."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Numbers in one place of the latent."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures in [0, 1], deterministic and not scaled: (B, 3, H, W) -> (B, C, H/p, W/p)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents: (B, C, h, w) -> (B, 3, h * p, w * p), nominally in [0, 1], not clamped."""

    @abstractmethod
    def pooled(self, pixels: Tensor) -> dict[str, Tensor]:
        """One vector a picture, for probes: `trunk` before the bottleneck, `bottleneck` the mean latent (B, C).

        A tokenizer with a contrastive head adds `image`, its feature of unit length (B, T).
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path, card: Card | None = None) -> None:
        """Write a folder that `vtp.models.kinds.open_tokenizer` reads."""

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        """Height and width of the latent of pictures, which are checked on the way."""
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pictures {form(pixels)}; expected floats (B, 3, H, W).")
        if not pixels.is_floating_point():
            raise ValueError(f"pictures of dtype {pixels.dtype}; expected floats in [0, 1] (for uint8: `pixels / 255`).")
        patch = self.downsample
        h, w = pixels.shape[-2:]
        if not h or not w or h % patch or w % patch:
            raise ValueError(f"pictures of {h} x {w} pixels; both sides must be multiples of the patch, {patch}.")
        return h // patch, w // patch

    def _check_latents(self, latents: Tensor) -> None:
        fits = latents.dim() == 4 and latents.shape[1] == self.latent_channels and 0 not in latents.shape[2:]
        if not fits or not latents.is_floating_point():
            raise ValueError(f"latents {form(latents)}; expected floats (B, {self.latent_channels}, h, w).")


def form(tensor: Tensor) -> str:
    """Shape and dtype, for errors."""
    return f"of shape {tuple(tensor.shape)} and dtype {tensor.dtype}"
