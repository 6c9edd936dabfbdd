"""A small classifier, trained here on the data at hand, whose features measure how alike two sets of pictures are.

It stands in for Inception where no published weights are at hand; distances in its features are never called FID.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtp import artifacts, seeding

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MetricNetwork(nn.Module):
    """A timm classifier without pretrained weights, a function of `seed`.

    Args:
        model: name of a timm model.
        num_classes: K.
        image_size: pixels, side of the pictures; a network of fixed size is built for it.

    Raises:
        ValueError: timm has no such model.
    """

    def __init__(self, model: str, *, num_classes: int, image_size: int, seed: int) -> None:
        super().__init__()
        import timm

        self.shape = {"model": model, "num_classes": num_classes, "image_size": image_size}
        if not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), 1)
            hint = f"did you mean {close[0]}?" if close else "timm.list_models() has all."
            raise ValueError(f"evaluate.metric_network.model={model} is no model of timm; {hint}")
        told = timm.get_pretrained_cfg(model)
        fixed: dict[str, Any] = {"img_size": image_size} if told is not None and told.fixed_input_size else {}
        with seeding.forked(seed, "metric network"):  # timm draws from the global generator
            self.net: Any = timm.create_model(model, pretrained=False, num_classes=num_classes, **fixed)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> logits (B, K)."""
        return self.net((pixels - self.mean) / self.std)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> what the classifier reads, pooled over places: (B, F)."""
        return self.net.forward_head(self.net.forward_features((pixels - self.mean) / self.std), pre_logits=True)

    @torch.no_grad()
    def describe(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures uint8 (B, 3, H, W) -> features (B, F) and logits (B, K) of one pass."""
        maps = self.net.forward_features((pictures.float() / 255 - self.mean) / self.std)
        return self.net.forward_head(maps, pre_logits=True), self.net.forward_head(maps)

    @classmethod
    def from_pretrained(cls, folder: Path) -> MetricNetwork:
        """Read what `save_pretrained` wrote, in eval mode and frozen, on the CPU."""
        network = cls(**artifacts.load_json(folder / "config.json"), seed=0)
        network.load_state_dict(artifacts.load_tensors(folder / "model.safetensors"))
        return network.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        artifacts.save_json(folder / "config.json", self.shape)
        artifacts.save_tensors(folder / "model.safetensors", self.state_dict())
