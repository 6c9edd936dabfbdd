"""Discriminators of the decoder's adversarial fine-tuning: convolutional patches, or heads on frozen features.

Neither shares statistics between pictures, so that its logits do not depend on how a batch is spread over ranks.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp import seeding
from vtp.compiling import compilable
from vtp.config import DiscriminatorParams
from vtp.models.hub import cached_weights


def discriminator(params: DiscriminatorParams, generator: torch.Generator) -> PatchDiscriminator | FeatureDiscriminator:
    """The discriminator that `params.kind` names, freshly initialised."""
    model = (
        PatchDiscriminator(params.width, params.layers)
        if params.kind == "patch"
        else FeatureDiscriminator.pretrained(params.feature_model)
    )
    model.init_weights(generator)
    return model


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping patch of a picture (PatchGAN, arXiv 1611.07004).

    Differs from the paper in its norm, groups of channels of one picture instead of the batch, and in one more ring of padding
    before the last but one convolution, so that the grid of logits is H / 2^layers x W / 2^layers whatever the size.

    Args:
        width: channels after the first convolution; they double at each of the next layers, up to 8 x `width`.
        layers: convolutions of stride 2.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inner = width
        for layer in range(1, layers + 1):
            outer = width * min(2**layer, 8)
            halving = layer < layers
            convolution = nn.Conv2d(inner, outer, 4, stride=2 if halving else 1, padding=1 if halving else 2, bias=False)
            parts += [convolution, nn.GroupNorm(math.gcd(outer, 32), outer), nn.LeakyReLU(0.2)]
            inner = outer
        self.net = nn.Sequential(*parts, nn.Conv2d(inner, 1, 4, padding=1))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal weights of deviation 0.02, about 1 for the gains of norms; zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                mean = 0.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(mean, 0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    @compilable
    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, M), high for real ones.

        Raises:
            ValueError: the pictures are smaller than 2^layers pixels.
        """
        if min(pictures.shape[-2:]) < 2**self.layers:
            raise ValueError(
                f"discriminator.layers={self.layers} is too many for pictures of {min(pictures.shape[-2:])} pixels; "
                f"they must have at least {2**self.layers}."
            )
        return self.net(pictures).flatten(1)


class SpectralConv(nn.Module):
    """Convolution over a ring of patches whose matrix has spectral norm 1 (arXiv 1802.05957): (B, c, N) -> (B, d, N).

    The leading singular vector is tracked by one power iteration a forward pass, kept only in training mode.
    """

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outer, inner, kernel))
        self.bias = nn.Parameter(torch.empty(outer))
        self.left: Tensor
        self.register_buffer("left", torch.empty(outer))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform weights in the fan-in range, zero bias; the singular vector is iterated until it holds."""
        bound = self.weight[0].numel() ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.zero_()
        self.left.normal_(generator=generator)
        for _ in range(15):
            self.left.copy_(self._singular_vectors()[0])

    def _singular_vectors(self) -> tuple[Tensor, Tensor]:
        matrix = self.weight.detach().flatten(1)
        right = F.normalize(matrix.T @ self.left, dim=0)
        return F.normalize(matrix @ right, dim=0), right

    def forward(self, x: Tensor) -> Tensor:
        left, right = self._singular_vectors()
        if self.training:
            with torch.no_grad():
                self.left.copy_(left)
        norm = torch.dot(left, self.weight.flatten(1) @ right)
        around = self.weight.shape[2] // 2
        return F.conv1d(F.pad(x, (around, around), mode="circular"), self.weight / norm, self.bias)


class FeatureHead(nn.Module):
    """Logits (B, N) from the features (B, N, D) of one block; norms are taken over the patches of one picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(SpectralConv(width, width, 1), nn.InstanceNorm1d(width, affine=True), nn.LeakyReLU(0.2))
        self.mix = nn.Sequential(SpectralConv(width, width, 9), nn.InstanceNorm1d(width, affine=True), nn.LeakyReLU(0.2))
        self.leave = SpectralConv(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.enter(features.transpose(1, 2))
        return self.leave((x + self.mix(x)) * 0.5**0.5).squeeze(1)


class FeatureDiscriminator(nn.Module):
    """Small heads on four depths of a frozen vision transformer (StyleGAN-T, arXiv 2301.09515; RAE, arXiv 2510.11690).

    Differs from RAE in reading the last block once, not twice. Gradients pass through the frozen network to the pictures.

    Args:
        backbone: a timm vision transformer with `forward_intermediates`; it is frozen here.
        size: pixels, side of the pictures it reads.
    """

    def __init__(self, backbone: nn.Module, size: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.size = size
        depth = len(backbone.blocks)  # type: ignore[arg-type]
        self.taken = sorted({max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)})
        self.heads = nn.ModuleList(FeatureHead(int(backbone.num_features)) for _ in self.taken)  # type: ignore[arg-type]
        told = backbone.pretrained_cfg
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(told["mean"]).view(1, 3, 1, 1))  # type: ignore[index]
        self.register_buffer("std", torch.tensor(told["std"]).view(1, 3, 1, 1))  # type: ignore[index]

    @classmethod
    def pretrained(cls, model: str, file: Path | None = None) -> FeatureDiscriminator:
        """On timm's `model` with its pretrained weights, at the size they were trained for.

        Args:
            file: a state of the backbone; None looks into the cache of Hugging Face.

        Raises:
            FileNotFoundError: the weights are not on disk.
            ValueError: timm knows no pretrained weights for `model`.
        """
        import timm

        if file is not None and not file.is_file():
            raise FileNotFoundError(f"{file} is missing; it should hold the weights of {model}.")
        told = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
        if told is None or not told.hf_hub_id:
            raise ValueError(f"discriminator.feature_model={model} is no pretrained model of timm; see timm.list_pretrained().")
        overlay = {"file": str(file or cached_weights(told.hf_hub_id, "use discriminator.kind: patch."))}
        with seeding.forked(0, "backbone"):  # timm draws weights first and loads the file over them
            backbone = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        return cls(backbone, told.input_size[-1])

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Weights of the heads; the backbone keeps its own."""
        for module in self.heads.modules():
            if isinstance(module, SpectralConv):
                module.init_weights(generator)
            elif isinstance(module, nn.InstanceNorm1d):
                module.reset_parameters()

    def train(self, mode: bool = True) -> FeatureDiscriminator:
        """Training mode for the heads; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> logits (B, M) of all heads, high for real ones."""
        pixels = (pictures + 1) / 2
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True)
        taken = self.backbone.forward_intermediates(  # type: ignore[operator]
            (pixels - self.mean) / self.std, indices=self.taken, output_fmt="NLC", intermediates_only=True
        )
        return torch.cat([head(features) for head, features in zip(self.heads, taken, strict=True)], dim=1)
