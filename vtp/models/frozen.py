"""Published networks that are never trained here: the perceptual distance LPIPS, and where the weights of others lie.

Nothing is downloaded: a missing file is an error that names it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vtp import seeding
from vtp.compiling import compilable

BACKBONES = {
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
}
"""File of each backbone's ImageNet weights, as torchvision calls it."""

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""File of the Inception weights that define FID, as torch-fidelity calls it."""


def weights_file(name: str, remedy: str) -> Path:
    """Path of a weights file in the checkpoints folder of torch.hub.

    Raises:
        FileNotFoundError: it is not there; the message names file and folder and ends with `remedy`.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is missing; put it into {folder}, or {remedy}")
    return folder / name


def inception_file() -> Path:
    """Path of the Inception weights; only distances in their features are called FID.

    Raises:
        FileNotFoundError: they are not on disk.
    """
    return weights_file(INCEPTION, "set evaluate.features: metric, which needs none.")


class Slices(nn.ModuleList):
    """A network cut into slices, which gives the output of every one of them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for part in self:
            x = part(x)
            found.append(x)
        return found


class Perceptual(nn.Module):
    """Distance between pictures in the unit-normalised features of a convolutional network (LPIPS, arXiv 1801.03924).

    Frozen and always in evaluation mode; gradients pass to the pictures. The formula is spelled out here because the package's
    own normalisation has an infinite gradient wherever every channel of a pixel is zero, which random backbones can reach.

    Args:
        backbone: pictures to a sequence of feature maps (B, c, h, w).
        shift, scale: (1, 3, 1, 1), what the backbone expects: (picture - shift) / scale.
        channels: for each feature map the non-negative weights of its channels, (1, c, 1, 1).
    """

    def __init__(self, backbone: nn.Module, shift: Tensor, scale: Tensor, channels: list[Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.channels = nn.ParameterList(channels)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Evaluation mode whatever is asked: it is a ruler."""
        return super().train(False)

    @compilable
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two batches of pictures (B, 3, H, W) in [-1, 1] -> distances (B,), 0 for equal pictures."""
        maps = zip(self._features(first), self._features(second), self.channels, strict=True)
        layers = [(weight * (a - b).square()).sum(1).mean((1, 2)) for a, b, weight in maps]
        return torch.stack(layers).sum(0)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.shift) / self.scale
        if x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)  # as its convolutions are fastest
        maps = [x.float() for x in self.backbone(x)]
        return [x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-10) for x in maps]


def perceptual(net: Literal["squeeze", "alex", "vgg"], weights: Literal["published", "random"], seed: int) -> Perceptual:
    """LPIPS with one of its three backbones, frozen.

    published: the backbone's ImageNet weights from disk and the channel weights that the package ships.
    random: the backbone as torchvision initialises it, a function of `seed` alone, and every channel counting alike. The shipped
        weights grade channels of the *trained* backbones; on random ones they would be an arbitrary selection. Random features
        still tell structure from noise far better than pixels do (arXiv 1801.03924, section 4), need no file, and are for
        trying the pipeline; distances in them compare with each other only, never with published numbers.

    Raises:
        FileNotFoundError: `weights` is "published" and the backbone's file is not on disk.
    """
    published = weights == "published"
    if published:
        weights_file(BACKBONES[net], "set perceptual.weights: random, which needs none.")
    import lpips

    with seeding.forked(seed, "perceptual", net), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*'(pretrained|weights)'.*")  # the package calls torchvision the old way
        model = lpips.LPIPS(net=net, pnet_rand=not published, lpips=published, verbose=False)
    if published:
        channels = [layer.model[-1].weight.detach() for layer in model.lins]
    else:
        channels = [torch.ones(1, count, 1, 1) for count in model.chns]
    slices = Slices(part for name, part in model.net.named_children() if name.startswith("slice"))
    return Perceptual(slices, model.scaling_layer.shift, model.scaling_layer.scale, channels)
