"""Bytes of a stored picture to a square of pixels, as fast as one core can.

Batches have one shape, so a picture loses what sticks out of its central square; augmentation crops from that square. A picture
that prepare has brought to the stored size is cropped only, one that lies as it came (an indexed tar) is resampled as well. JPEG,
nearly all there is, goes through torchvision, which gives Pillow's bits in less than half of its time for small pictures;
whatever is unusual (CMYK, other formats, far too large) through Pillow.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from vtp.data.pictures import centre_crop, decode

JPEG = b"\xff\xd8"


def square(data: bytes, short_side: int, out: Tensor) -> None:
    """Decode a picture and write its central square, resampled if it has another size, into out (3, S, S) uint8.

    Args:
        short_side: of the picture in pixels, as its index says; far larger ones are decoded at half or a quarter of their size.

    Raises:
        ValueError: the bytes are no whole picture.
    """
    side = out.shape[-1]
    pixels = _jpeg(data) if short_side < 2 * side and data.startswith(JPEG) else None
    if pixels is None or min(pixels.shape[1:]) != side:
        image = decode(data, side) if pixels is None else Image.fromarray(pixels.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        image = image if image.size == (side, side) else centre_crop(image, side)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)
    top, left = ((length - side) // 2 for length in pixels.shape[1:])
    out.copy_(pixels[:, top : top + side, left : left + side])


def _jpeg(data: bytes) -> Tensor | None:
    """Pixels of a JPEG, upright, in colour (3, H, W) or grey (1, H, W); None if its colours are other ones."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_jpeg(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return pixels if len(pixels) in (1, 3) else None
