"""Frozen networks that understand pictures, for others to be held close to: tokenizers of this kind, and timm's transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp import seeding
from vtp.models.hub import cached_weights
from vtp.models.tokenizer import VisualTokenizer
from vtp.origins import TIMM


class Foundation(nn.Module):
    """Features of pictures on any grid, frozen and always in evaluation mode.

    Args:
        network: pictures to patch features; see `features` of the two kinds below.
        patch: its patch in pixels.
        width: channels of its features.
    """

    def __init__(self, network: nn.Module, patch: int, width: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.patch, self.width = patch, width

    def train(self, mode: bool = True) -> Foundation:
        """Evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> features (B, width, *grid); pictures are resized so that the grids agree."""
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return self.patches(pixels).transpose(1, 2).unflatten(2, grid)

    def patches(self, pixels: Tensor) -> Tensor:
        """Features of each patch (B, N, width), row-major."""
        raise NotImplementedError


class TokenizerFoundation(Foundation):
    """The trunk of a tokenizer, before its bottleneck."""

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        options = tokenizer.options.encoder
        super().__init__(tokenizer, options.patch, options.block.width)
        self.tokenizer = tokenizer

    def patches(self, pixels: Tensor) -> Tensor:
        return self.tokenizer.features(pixels).patches


class TimmFoundation(Foundation):
    """A vision transformer of timm after its last norm, class token and registers left out."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone, int(backbone.patch_embed.patch_size[0]), int(backbone.num_features))  # type: ignore[union-attr, index, arg-type]
        told = backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(told["mean"]).view(3, 1, 1), persistent=False)  # type: ignore[index]
        self.register_buffer("std", torch.tensor(told["std"]).view(3, 1, 1), persistent=False)  # type: ignore[index]
        self.prefix = int(backbone.num_prefix_tokens)  # type: ignore[arg-type]

    def patches(self, pixels: Tensor) -> Tensor:
        features = self.network.forward_features((pixels - self.mean) / self.std)  # type: ignore[operator]
        return features[:, self.prefix :]


def foundation(name: str) -> Foundation:
    """The network that `name` means: the folder of a tokenizer, or `timm:` and the name of a vision transformer.

    Raises:
        FileNotFoundError: its weights are not on disk.
        ValueError: no tokenizer is in that folder, or timm has no pretrained transformer of that name.
    """
    if not name.startswith(TIMM):
        if not Path(name).is_dir():
            raise FileNotFoundError(f"pretrain.align.teacher={name} is no folder; give that of a tokenizer, or timm:<name>.")
        return TokenizerFoundation(VisualTokenizer.from_pretrained(name))
    import timm

    model = name.removeprefix(TIMM)
    told = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if told is None or not told.hf_hub_id:
        raise ValueError(f"pretrain.align.teacher={name} is no pretrained model of timm; see timm.list_pretrained().")
    file = cached_weights(told.hf_hub_id, "name the folder of a tokenizer that was trained here.")
    with seeding.forked(0, "foundation"):  # timm draws weights first and loads the file over them
        try:
            backbone = timm.create_model(
                model, pretrained=True, num_classes=0, dynamic_img_size=True, pretrained_cfg_overlay={"file": str(file)}
            )
        except TypeError:  # of a constructor that knows no such size
            raise ValueError(
                f"pretrain.align.teacher={name} is no vision transformer that takes pictures of any size; "
                "timm:vit_base_patch14_dinov2 is one."
            ) from None
    return TimmFoundation(backbone)
