"""Colour changes of the self-distillation crops: jitter, grayscale, blur, solarise, each applied to some of the pictures.

The recipe is DINOv2's (Oquab et al. 2023, arXiv 2304.07193), with these differences:

- Brightness, contrast, saturation and hue change in this order; there the order is drawn for each picture. One order for the
  batch keeps it one tensor operation each.
- Blur is applied with the probability that is asked for. The published code of DINOv2 hands the complement of its nominal
  probability to the operation, so that its first view is never blurred and its second one nine times out of ten.
- Blur widens with the picture: see `blur_radius`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtp.compiling import compilable
from vtp.config import ViewParams
from vtp.seeding import Draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
"""Half-widths of the factors around 1; of the shift around 0 for the hue, in turns of the colour circle."""

SIGMA = (0.1, 2.0)
"""Standard deviation of the blur in pixels, of crops from a recipe with global crops of `BLUR_SIZE` pixels."""

BLUR_SIZE = 224
"""Size of the global crops, in pixels, that `SIGMA` and 9 x 9 taps were chosen for."""


class Colour(NamedTuple):
    """What is done to each picture, (B) each, so that rows can be sliced: `Colour(*(part[rows] for part in colour))`."""

    jitter: Tensor
    """bool; so are `gray`, `blur` and `solarize`."""
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    """Standard deviation in pixels."""
    solarize: Tensor


def random_colour(
    draws: Draws, purpose: str, total: int, views: ViewParams, *, blur: Sequence[float], solarize: Sequence[float]
) -> Colour:
    """Colour changes of several crops of each of this rank's b pictures, crop-major: (len(blur) * b) each.

    Args:
        blur, solarize: probabilities, one for each crop of a picture.
    """
    copies = len(blur)
    u = draws.uniform(f"{purpose}/colour", total, copies, 9).permute(2, 1, 0)  # (9, copies, b)

    def flags(row: Tensor, probabilities: Sequence[float]) -> Tensor:
        return torch.stack([row[i] < p for i, p in enumerate(probabilities)]).flatten()

    def around(row: Tensor, middle: float, spread: float) -> Tensor:
        return (middle + spread * (2 * row - 1)).flatten()

    narrow, wide = SIGMA
    # Below 0.1 pixels a neighbour weighs less than 1e-21: a narrower blur would only divide by zero.
    sigma = ((narrow + (wide - narrow) * u[7]) * (views.global_size / BLUR_SIZE)).clamp(min=0.1).flatten()
    return Colour(
        jitter=flags(u[0], [views.jitter] * copies),
        brightness=around(u[1], 1, BRIGHTNESS),
        contrast=around(u[2], 1, CONTRAST),
        saturation=around(u[3], 1, SATURATION),
        hue=around(u[4], 0, HUE),
        gray=flags(u[5], [views.grayscale] * copies),
        blur=flags(u[6], blur),
        sigma=sigma,
        solarize=flags(u[8], solarize),
    )


@compilable
def recolour(pixels: Tensor, colour: Colour, *, radius: int) -> Tensor:
    """Apply `colour` to pixels (B, 3, H, W) in [0, 1]; the blur has 2 * radius + 1 taps a side."""
    jittered = shift_hue(saturate(contrast(brighten(pixels, colour.brightness), colour.contrast), colour.saturation), colour.hue)
    pixels = torch.where(_each(colour.jitter), jittered, pixels)
    pixels = torch.where(_each(colour.gray), grayscale(pixels), pixels)
    pixels = torch.where(_each(colour.blur), gaussian_blur(pixels, colour.sigma, radius=radius), pixels)
    return torch.where(_each(colour.solarize), solarize(pixels), pixels)


def brighten(pixels: Tensor, factor: Tensor) -> Tensor:
    """Scale the light of pixels (B, 3, H, W) in [0, 1] by factor (B); 1 changes nothing."""
    return (pixels * _each(factor)).clamp_(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Move pixels (B, 3, H, W) in [0, 1] from their picture's mean gray by factor (B); 1 changes nothing."""
    return _blend(pixels, grayscale(pixels).mean((1, 2, 3), keepdim=True), factor)


def saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    """Move pixels (B, 3, H, W) in [0, 1] from their own gray by factor (B); 1 changes nothing, 0 leaves gray."""
    return _blend(pixels, grayscale(pixels), factor)


def shift_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour circle of pixels (B, 3, H, W) in [0, 1] by turns (B), 1 being the whole circle; light and chroma stay."""
    red, green, blue = pixels.unbind(1)
    light = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = light - least
    scale = chroma.clamp(min=1e-12).reciprocal_()  # of a gray, the differences below are 0
    from_red = (green - blue).mul_(scale)
    from_green = (blue - red).mul_(scale).add_(2)
    from_blue = (red - green).mul_(scale).add_(4)
    sixths = torch.where(light == red, from_red, torch.where(light == green, from_green, from_blue))
    sixths = sixths.add_(6 * turns[:, None, None]).remainder_(6)
    # Over the circle each channel rises, stays and falls, a third of the circle after the one before it.
    shares = ((sixths - 3).abs_().sub_(1), 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_())
    return torch.stack([share.clamp_(0, 1).mul_(chroma).add_(least) for share in shares], 1)


def grayscale(pixels: Tensor) -> Tensor:
    """Luma of ITU-R 601 of pixels (B, 3, H, W): (B, 1, H, W)."""
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def blur_radius(global_size: int) -> int:
    """Taps on each side of the blur's middle, in a recipe with global crops of `global_size` pixels: 4 (9 x 9) at 224.

    Taps and standard deviation grow with the crops, because a blur is meant to hide detail of a certain share of the picture:
    2 pixels of 224 are fine texture, 2 pixels of 64 whole objects. Local crops take the global ones' blur, as they do at 224.
    """
    return max(1, round(4 * global_size / BLUR_SIZE))


def gaussian_blur(pixels: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Gaussian blur of pixels (B, 3, H, W) with standard deviation sigma (B) in pixels, edges reflected."""
    offsets = torch.arange(-radius, radius + 1, device=pixels.device)
    taps = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), 1)
    padded = F.pad(pixels, (radius,) * 4, mode="reflect")
    return _taps(_taps(padded, taps, 2), taps, 3)


def _taps(pixels: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Weighted sum of shifted pixels (B, 3, H, W) along `dim`, which shrinks by as many as there are taps (B, n), less one."""
    length = pixels.shape[dim] - taps.shape[1] + 1
    shifted = (_each(taps[:, i]) * pixels.narrow(dim, i, length) for i in range(taps.shape[1]))
    return functools.reduce(torch.add, shifted)


def solarize(pixels: Tensor) -> Tensor:
    """Invert pixels (B, 3, H, W) in [0, 1] from one half up."""
    return torch.minimum(pixels, 1 - pixels)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (pixels * _each(factor)).add_(other * _each(1 - factor)).clamp_(0, 1)


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]
