"""The projection head of self-distillation (DINO, arXiv 2104.14294; DINOv2, arXiv 2304.07193)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Weight-normed linear layer without bias: logits against K prototypes, each with a learned length."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class DinoHead(nn.Module):
    """MLP with GELU, then the unit sphere, then prototypes: (..., D) -> (..., K). Class tokens and patches share it.

    Args:
        width: D of the features.
        hidden: width of the hidden layers.
        bottleneck: width of the sphere.
        prototypes: K.
        layers: linear layers before the sphere, at least 2.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int, layers: int) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"ssl.head_layers={layers} is too small; it must be at least 2.")
        parts: list[nn.Module] = [nn.Linear(width, hidden), nn.GELU()]
        for _ in range(layers - 2):
            parts += [nn.Linear(hidden, hidden), nn.GELU()]
        self.mlp = nn.Sequential(*parts, nn.Linear(hidden, bottleneck))
        self.last_layer = Prototypes(bottleneck, prototypes)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal linears; prototypes in the uniform fan-in range, unit length."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)
        bound = self.last_layer.weight_v.shape[1] ** -0.5
        self.last_layer.weight_v.uniform_(-bound, bound, generator=generator)
        self.last_layer.weight_g.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.sphere(x))

    def sphere(self, x: Tensor) -> Tensor:
        """Unit vectors (..., bottleneck): all that scores hang on, and hundreds of times smaller than them."""
        return F.normalize(self.mlp(x), dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)

    def scores(self, sphere: Tensor) -> Tensor:
        """Scores (..., K) of points on the sphere, linear in them."""
        return self.last_layer(sphere)
