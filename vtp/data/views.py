"""Views of a batch of pictures: random crops resampled as batched matrix products, on the device where the pictures live.

Each view is drawn first (`random_boxes`, `random_windows`, `random_colour`: tensors of this rank's rows), then applied, so that
a caller who works through a batch in pieces slices pictures and draws alike and sees the same crops. Nothing here waits for the
device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtp.compiling import compilable
from vtp.config import ViewParams
from vtp.data.colour import Colour, blur_radius, random_colour, recolour
from vtp.seeding import Draws

TRIES = 10
"""Boxes drawn for a crop before the whole picture is taken."""

ALL = slice(None)


class Windows(NamedTuple):
    """Where to crop: boxes (B, 4) as y0, x0, y1, x1 in pixels, and flip (B) bool, left to right."""

    boxes: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Crops:
    """Crops that are drawn for every picture (b, 3, H, W) of this rank and cut when asked for: a batch need not fit at once."""

    images: Tensor
    windows: Windows
    colour: Colour | None
    size: int
    radius: int
    """Taps on each side of the blur's middle."""

    def of(self, rows: slice = ALL) -> Tensor:
        """The n crops of each of these pictures, crop-major: (n * rows, 3, size, size) in [0, 1]."""
        pictures = len(self.images)

        def own(drawn: Tensor) -> Tensor:
            return drawn if rows == ALL else drawn.view(-1, pictures, *drawn.shape[1:])[:, rows].flatten(0, 1)

        pixels = crop(self.images[rows], own(self.windows.boxes), own(self.windows.flip), self.size)
        return pixels if self.colour is None else recolour(pixels, Colour(*map(own, self.colour)), radius=self.radius)


def clip_view(images: Tensor, draws: Draws, total: int, views: ViewParams, *, size: int) -> Crops:
    """The contrastive view of this rank's images (b, 3, H, W) of a global batch of `total`.

    A large crop and nothing else, as OpenCLIP trains: captions speak of colours, and of left and right.
    """
    return random_view(images, draws, "clip_view", total, scale=views.clip_scale, size=size, flip=False)


def reconstruction_view(images: Tensor, draws: Draws, total: int, views: ViewParams, *, size: int) -> Crops:
    """The view to be reconstructed, cropped and flipped with its colours kept."""
    return random_view(images, draws, "reconstruction_view", total, scale=views.reconstruction_scale, size=size, flip=True)


def global_crops(images: Tensor, draws: Draws, total: int, views: ViewParams) -> Crops:
    """Two large crops of each picture: the first crops of all pictures, then the second.

    Colour changes are DINOv2's (see `vtp.data.colour`); only the second crops are solarised.
    """
    windows = random_windows(draws, "global_crops", total, images.shape[2], images.shape[3], scale=views.global_scale, copies=2)
    colour = random_colour(draws, "global_crops", total, views, blur=views.blur[:2], solarize=(0.0, views.solarize))
    return Crops(images, windows, colour, views.global_size, blur_radius(views.global_size))


def local_crops(images: Tensor, draws: Draws, total: int, views: ViewParams) -> Crops:
    """n = `views.local_crops` small crops of each picture, at least one, crop-major."""
    n = views.local_crops
    windows = random_windows(draws, "local_crops", total, images.shape[2], images.shape[3], scale=views.local_scale, copies=n)
    colour = random_colour(draws, "local_crops", total, views, blur=(views.blur[2],) * n, solarize=(0.0,) * n)
    return Crops(images, windows, colour, views.local_size, blur_radius(views.global_size))


def random_view(
    images: Tensor, draws: Draws, purpose: str, total: int, *, scale: tuple[float, float], size: int, flip: bool
) -> Crops:
    """A random crop of each picture, flipped half of the time if `flip`."""
    windows = random_windows(draws, purpose, total, images.shape[2], images.shape[3], scale=scale)
    windows = windows if flip else windows._replace(flip=torch.zeros_like(windows.flip))
    return Crops(images, windows, None, size, 0)


def whole(images: Tensor, size: int) -> Tensor:
    """The pictures (B, 3, H, H) themselves, to be looked at: (B, 3, size, size) in [0, 1]."""
    boxes = torch.tensor([0.0, 0.0, *images.shape[2:]], device=images.device).expand(len(images), 4)
    return crop(images, boxes, torch.zeros(len(images), dtype=torch.bool, device=images.device), size)


def random_windows(
    draws: Draws, purpose: str, total: int, height: int, width: int, *, scale: tuple[float, float], copies: int = 1
) -> Windows:
    """Boxes and fair coins for flipping, for `copies` crops of each of this rank's b pictures, crop-major."""
    boxes = random_boxes(draws, f"{purpose}/box", total, height, width, scale, copies=copies)
    return Windows(boxes, draws.uniform(f"{purpose}/flip", total, copies).T.flatten() < 0.5)


def random_boxes(
    draws: Draws,
    purpose: str,
    total: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    *,
    copies: int = 1,
) -> Tensor:
    """Random resized crops (Szegedy et al. 2014, arXiv 1409.4842) as torchvision draws them, in whole pixels.

    The area is uniform in `scale` (fractions of the picture), width over height log-uniform in `ratio`. The first of `TRIES`
    boxes that fits the picture is taken; if none does, the largest centred box whose shape is within `ratio`.

    Args:
        total: pictures of the global batch.
        height, width: of the pictures, in pixels.
        copies: boxes for each picture.

    Returns:
        (copies * b, 4) float, crop-major: y0, x0, y1, x1 in pixels, for this rank's b pictures.
    """
    u = draws.uniform(purpose, total, copies, 4, TRIES).transpose(0, 1).flatten(0, 1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * u[:, 1])
    h, w = (area / shape).sqrt_().round_(), (area * shape).sqrt_().round_()
    fits = (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
    first = fits.int().argmax(1, keepdim=True)
    h, w, y, x = (value.gather(1, first)[:, 0] for value in (h, w, u[:, 2], u[:, 3]))
    # Rounding can carry u * n up to n.
    top = torch.minimum((y * (height - h + 1)).floor_(), height - h)
    left = torch.minimum((x * (width - w + 1)).floor_(), width - w)
    drawn = torch.stack([top, left, top + h, left + w], 1)

    h0, w0 = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    top0, left0 = (height - h0) // 2, (width - w0) // 2
    fitting = fits.any(1)
    fallback = [torch.full_like(top, edge) for edge in (top0, left0, top0 + h0, left0 + w0)]
    return torch.where(fitting[:, None], drawn, torch.stack(fallback, 1))


@compilable
def crop(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut boxes out of pictures and resample them to squares, antialiased bicubic as in Pillow and torchvision.

    The filter (Keys 1981, a = -0.5) widens with the reduction and never reads outside the box.

    Args:
        images: (B, 3, H, W), uint8, or float in [0, 1].
        boxes: (n * B, 4) float as y0, x0, y1, x1 in pixels, crop-major: n boxes for each picture.
        flip: (n * B) bool, left to right.
        size: side of the squares in pixels.

    Returns:
        (n * B, 3, size, size) float32 in [0, 1].
    """
    height, width = images.shape[2:]
    copies = len(boxes) // len(images)
    y0, x0, y1, x1 = boxes.unbind(1)
    rows = _filters(y0, y1, torch.zeros_like(flip), height, size)
    columns = _filters(x0, x1, flip, width, size)
    if images.dtype == torch.uint8:
        columns = columns / 255
    images = images.float()
    with torch.autocast(images.device.type, enabled=False):
        crops = [_resample(images, r, c) for r, c in zip(rows.chunk(copies), columns.chunk(copies), strict=True)]
    return (torch.cat(crops) if copies > 1 else crops[0]).clamp_(0, 1)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows (B, s, H) @ images (B, 3, H, W) @ columns (B, s, W)^T: (B, 3, s, s)."""
    narrowed = torch.bmm(images.flatten(1, 2), columns.transpose(1, 2)).unflatten(1, images.shape[1:3])
    return torch.matmul(rows[:, None], narrowed)


def _filters(start: Tensor, stop: Tensor, flip: Tensor, length: int, size: int) -> Tensor:
    """Weights of `length` input pixels for `size` output pixels that cover [start, stop), both (B): (B, size, length).

    The weights of an output pixel sum to 1; `flip` (B) reverses the output.
    """
    place = torch.arange(size, device=start.device)
    place = torch.where(flip[:, None], size - 1 - place, place) + 0.5
    step = (stop - start) / size
    centre = start[:, None] + step[:, None] * place
    pixel = torch.arange(length, device=start.device) + 0.5
    sharpness = 1 / step.clamp(min=1)
    distance = (pixel - centre[:, :, None]).mul_(sharpness[:, None, None]).abs_()
    # Keys' two cubic pieces, as truncated powers of the distance to their outer ends 2 and 1.
    outer = (2 - distance).clamp_(min=0)
    inner = (outer - 1).clamp_(min=0)
    weights = (outer - 1).mul_(outer).mul_(outer).mul_(0.5)
    weights.add_((1 - 2 * inner).mul_(inner).mul_(inner))
    inside = (pixel > start[:, None]) & (pixel < stop[:, None])
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))
