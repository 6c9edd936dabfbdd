"""Encoded pictures of any kind: decoded to RGB in full or refused with a reason, and brought into the form they are stored in.

What a file is called does not matter, its bytes decide. Colour profiles are not applied, as usual in training.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO")
"""Decoders that bytes from outside may reach; Pillow has more, and some of those start programs."""
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg"}
LOSSY = ("JPEG", "MPO", "WEBP")
MOST_PIXELS = 2**26
"""Pixels (67 million) of the largest picture that is decoded: 200 MB."""
QUALITY = 95
ORIENTATION = 0x0112
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


class Unusable(ValueError):
    """Bytes that are no whole picture, or one that would lose by being read as 8-bit RGB. The message is one of a few."""


@dataclass(frozen=True)
class Picture:
    """A picture of the stored form.

    Attributes:
        data: PNG or JPEG bytes of an RGB picture.
        suffix: `.png` or `.jpg`.
        short_side: pixels, of the picture as it came.
        image: what `data` decodes to, but for the loss of a JPEG made here.
    """

    data: bytes
    suffix: str
    short_side: int
    image: Image.Image


def examine(data: bytes | None) -> Image.Image:
    """A picture as Pillow has it before decoding: its format, mode and sizes are known, its pixels are not.

    Raises:
        Unusable: nothing there, no picture, or more than `MOST_PIXELS`.
    """
    if not data:
        raise Unusable("image is missing" if data is None else "image is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Unusable(f"image has more than {MOST_PIXELS} pixels") from None
    except Exception:  # decoders of hostile bytes raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise Unusable("image is no picture of a known format") from None
    if image.width * image.height > MOST_PIXELS:
        raise Unusable(f"image has more than {MOST_PIXELS} pixels")
    if image.mode in ("I", "F") or (image.mode.startswith("I;") and not image.mode.startswith("I;16")):
        raise Unusable("image has 32 bits a channel")
    return image


def decode(data: bytes | None, side: int | None = None) -> Image.Image:
    """The pixels of an encoded picture as 8-bit RGB, upright.

    Greyscale, palettes and CMYK are converted, 16 bits scaled to 8, transparent pixels laid over white; of an animation the first
    frame is taken.

    Args:
        side: a JPEG whose short side is at least twice this may be decoded at a half, a quarter or an eighth of its size, which
            is faster, but not below it.

    Raises:
        Unusable: the bytes are no whole picture, or one with more than 16 bits a channel.
    """
    return _upright(_loaded(data, side)[0])


def store(data: bytes | None, side: int) -> Picture:
    """The stored form of an encoded picture: RGB, its short side at most `side` pixels, its aspect kept.

    An ordinary RGB JPEG or PNG that is small enough keeps its bytes. Other small ones become a PNG, which loses nothing; what is
    made smaller becomes a JPEG of quality 95 if it came as a lossy format, and a PNG otherwise.

    Raises:
        Unusable: as `decode`.
    """
    file, short_side = _loaded(data, side)
    image = _upright(file)
    if short_side > side:
        image = image.resize(_scaled(image.size, side), Image.Resampling.BICUBIC)
        format = "JPEG" if file.format in LOSSY else "PNG"
        return Picture(encode(image, format), SUFFIXES[format], short_side, image)
    if file.format in SUFFIXES and image is file and data is not None:
        return Picture(data, SUFFIXES[file.format], short_side, image)
    return Picture(encode(image, "PNG"), ".png", short_side, image)


def histogram(image: Image.Image) -> np.ndarray:
    """Pixels of an RGB picture by channel and level: (3, 256) int64."""
    return np.array(image.histogram(), dtype=np.int64).reshape(3, 256)


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


def encode(image: Image.Image, format: str = "PNG") -> bytes:
    """Lossless PNG, compressed lightly because reading time matters more than size; or a JPEG that keeps its colours sharp."""
    file = io.BytesIO()
    if format == "JPEG":
        image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _loaded(data: bytes | None, side: int | None) -> tuple[Image.Image, int]:
    """A picture with its pixels as they are encoded, maybe at a fraction of its size, and the short side it came with."""
    image = examine(data)
    assert data is not None
    if image.format == "JPEG" and data.rfind(END_OF_IMAGE) < data.rfind(START_OF_SCAN):
        # Decoders fill what is missing with grey, or take zeros at the end of the file for pixels.
        raise Unusable("image is cut")
    short_side = min(image.size)
    try:
        if side is not None and short_side >= 2 * side:
            image.draft("RGB", _scaled(image.size, side))
        image.load()
    except Exception as error:  # as in `examine`
        raise Unusable("image is cut" if "truncated" in str(error) else "image cannot be decoded") from None
    return image, short_side


def _upright(image: Image.Image) -> Image.Image:
    """As 8-bit RGB, turned as its EXIF data says; the same object where there is nothing to do."""
    try:
        return _as_rgb(ImageOps.exif_transpose(image) if _turned(image) else image)
    except Exception:  # as in `examine`
        raise Unusable("image cannot be decoded") from None


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the short side `side`."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def _turned(image: Image.Image) -> bool:
    """Whether the picture's EXIF data asks for a rotation or reflection; unreadable EXIF data asks for nothing."""
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # the parser meets the same hostile bytes as the decoders
        return False


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, (255, 255, 255))
        image.paste(layer, mask=layer)
    return image if image.mode == "RGB" else image.convert("RGB")
