"""Encoded pictures on their way into the shards: decoded in full, cropped to the square, encoded again only where needed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg"}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
"""Pillow modes of 8 bits a channel; others (16 bits, floats) would lose their range in silence."""


@dataclass(frozen=True)
class Picture:
    """A picture of the stored form.

    Attributes:
        data: PNG or JPEG bytes of an RGB picture of S x S pixels.
        suffix: `.png` or `.jpg`.
        short_side: pixels, of the picture as it came.
        pixels: its S x S x 3 bytes, decoded.
        histogram: (3, 256) int64, pictures' pixels per channel and grey level.
    """

    data: bytes
    suffix: str
    short_side: int
    pixels: bytes
    histogram: np.ndarray


def encode(image: Image.Image) -> bytes:
    """Lossless PNG, compressed lightly: reading time matters more than size."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of a picture, `size` pixels wide, as ADM prepares ImageNet (Dhariwal and Nichol, arXiv 2105.05233).

    The picture is halved with a box filter while its short side is at least 2 x `size`, resampled bicubically to the short side
    `size`, and cut in the middle, rounding offsets down.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def prepare(data: bytes | None, size: int) -> Picture | None:
    """The stored form of an encoded picture, or None if it cannot be decoded in full.

    A PNG or JPEG that is RGB and `size` x `size` pixels already keeps its bytes; greyscale, palette, alpha (dropped) and other
    sizes become an RGB PNG.
    """
    if data is None:
        return None
    try:
        file = Image.open(io.BytesIO(data))
        file.load()
    except Exception:  # decoders of hostile bytes raise nearly anything: OSError, SyntaxError, struct.error, bomb errors, ...
        return None
    if file.mode not in MODES:
        return None
    image: Image.Image = file
    suffix = SUFFIXES.get(file.format or "")
    if suffix is None or file.mode != "RGB" or file.size != (size, size):
        image = centre_crop(file.convert("RGB"), size)
        data, suffix = encode(image), ".png"
    histogram = np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
    return Picture(data, suffix, min(file.size), image.tobytes(), histogram)
