from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from safetensors.torch import load_file

from tests.data.stub import pixels, png
from vtp.data import pictures
from vtp.data.pictures import Unusable, decode, store

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors")
MODES = [
    ("L", "PNG"),
    ("P", "PNG"),
    ("1", "PNG"),
    ("CMYK", "JPEG"),
    ("L", "JPEG"),
    ("RGB", "BMP"),
    ("RGB", "WEBP"),
    ("RGB", "TIFF"),
    ("P", "GIF"),
]


def smooth(height: int, width: int) -> Image.Image:
    """A picture that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * y // height, 255 * x // width, 255 * (x + y) // (height + width)], 2).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def fault(data: bytes | None) -> str:
    with pytest.raises(Unusable) as caught:
        decode(data)
    with pytest.raises(Unusable, match=str(caught.value)):
        store(data, 16)
    return str(caught.value)


def test_centre_crop_matches_the_oracle() -> None:
    names = sorted({name.split(".")[0] for name in ORACLE if name.startswith("crop")})
    assert len(names) == 3
    for name in names:
        expected = ORACLE[f"{name}.output"].numpy().astype(int)
        found = pictures.centre_crop(Image.fromarray(ORACLE[f"{name}.input"].numpy()), len(expected))
        assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("format", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg")])
def test_ordinary_pictures_that_are_small_enough_keep_their_bytes(format: str, suffix: str) -> None:
    for side in (16, 17, 400):
        data = png(pixels(1), format)
        picture = store(data, side)
        assert (picture.data, picture.suffix, picture.short_side) == (data, suffix, 16)
        assert picture.image.tobytes() == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize(("mode", "format"), MODES)
def test_other_pictures_become_rgb_png_without_loss(mode: str, format: str) -> None:
    data = png(pixels(1), format, mode)
    picture = store(data, 16)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    image = Image.open(io.BytesIO(picture.data))
    assert (picture.suffix, image.mode, image.format) == (".png", "RGB", "PNG")
    assert image.tobytes() == picture.image.tobytes() == expected.tobytes() == decode(data).tobytes()


def test_large_pictures_are_made_smaller_with_their_aspect() -> None:
    original = smooth(96, 150)
    expected = array(original.resize((62, 40), Image.Resampling.BICUBIC))
    for format, suffix in (("JPEG", ".jpg"), ("WEBP", ".jpg"), ("PNG", ".png")):
        picture = store(encoded(original, format, quality=95), 40)
        assert (picture.suffix, picture.short_side) == (suffix, 96)
        stored = Image.open(io.BytesIO(picture.data))
        assert (stored.size, stored.mode) == ((62, 40), "RGB")
        assert np.abs(array(stored) - expected).max() <= (0 if suffix == ".png" else 12)
        assert np.abs(array(stored) - array(picture.image)).max() <= (0 if suffix == ".png" else 8)
    assert store(encoded(smooth(150, 96), "PNG"), 40).image.size == (40, 62)


def test_a_jpeg_far_too_large_is_decoded_small_and_looks_the_same() -> None:
    data = encoded(smooth(800, 1200), "JPEG", quality=95)
    assert min(decode(data, 64).size) == 100
    exact = Image.open(io.BytesIO(data)).resize((96, 64), Image.Resampling.BICUBIC)
    assert np.abs(array(store(data, 64).image) - array(exact)).max() <= 4


def test_transparent_pixels_lie_over_white() -> None:
    rgba = np.zeros((16, 16, 4), dtype=np.uint8)
    rgba[:8, :, 0], rgba[:8, :, 3], rgba[8:, :, 1], rgba[12:, :, 3] = 200, 255, 90, 128
    layer = Image.fromarray(rgba)
    found = array(decode(encoded(layer, "PNG")))
    assert (found[:8] == (200, 0, 0)).all()
    assert (found[8:12] == 255).all()
    assert (np.abs(found[12:] - (127, 172, 127)) <= 1).all()
    grey = Image.fromarray(rgba[..., 1:2].repeat(2, 2) * 0 + np.array([60, 0], dtype=np.uint8), "LA")
    assert (array(decode(encoded(grey, "PNG"))) == 255).all()
    palette = Image.fromarray(np.repeat([[0, 1]], 16, 0).repeat(8, 1).astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    found = array(decode(encoded(palette, "PNG", transparency=1)))
    assert (found[:, :8] == (10, 20, 30)).all()
    assert (found[:, 8:] == 255).all()


def test_sixteen_bits_are_scaled_to_eight() -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = array(decode(encoded(Image.fromarray(levels), "PNG")))
    assert np.array_equal(found[..., 0], np.rint(levels / 257.0))
    assert (found[..., 0] == found[..., 2]).all()
    assert fault(encoded(Image.fromarray(np.ones((16, 16), dtype=np.float32)), "TIFF")) == "image has 32 bits a channel"
    assert fault(encoded(Image.fromarray(np.ones((16, 16), dtype=np.int32)), "TIFF")) == "image has 32 bits a channel"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_stand_upright(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    original = smooth(24, 40)
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    data = encoded(original, format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data).size == expected.size == ((40, 24) if orientation < 5 else (24, 40))
    assert decode(data).tobytes() == expected.convert("RGB").tobytes()
    picture = store(data, 64)
    assert array(Image.open(io.BytesIO(picture.data))).shape == array(expected).shape
    assert (picture.data == data) == (orientation == 1 and format != "WEBP")


def test_exif_that_cannot_be_read_asks_for_nothing() -> None:
    data = encoded(smooth(24, 40), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode(data).size == (40, 24)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(red, format, save_all=True, append_images=[blue], **options)
    assert (array(decode(data)) == (250, 0, 0)).all()


def test_content_decides_whatever_a_file_is_called() -> None:
    picture = store(png(pixels(1), "JPEG"), 16)  # no name enters
    assert picture.suffix == ".jpg"
    assert fault(b"<!DOCTYPE html><html>404</html>") == "image is no picture of a known format"


def test_nothing_and_nothing_much() -> None:
    assert fault(None) == "image is missing"
    assert fault(b"") == "image is empty"
    assert fault(b"\0" * 1000) == "image is no picture of a known format"
    assert fault(b"%!PS-Adobe-3.0 EPSF-3.0\n") == "image is no picture of a known format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_cut_picture_is_refused_wherever_it_is_cut(format: str) -> None:
    image = Image.fromarray(pixels(3, height=40, width=40))
    data = encoded(image, format)
    whole = decode(data).tobytes()
    for share in np.linspace(0.02, 0.98, 25):
        for part in (
            data[: int(len(data) * share)],
            data[: int(len(data) * share)] + b"\0" * (len(data) - int(len(data) * share)),
        ):
            try:
                found = decode(part)
            except Unusable:
                continue
            # Cut behind the pixels, or zeros where zeros may stand: BMP and GIF have no checksum.
            assert found.tobytes() == whole or (format in ("BMP", "GIF", "WEBP") and part.endswith(b"\0"))


def test_a_jpeg_whose_end_was_never_downloaded_is_refused_though_its_thumbnail_is_whole() -> None:
    thumbnail = encoded(smooth(12, 16), "JPEG")
    data = encoded(smooth(200, 300), "JPEG", quality=95)
    marked = data[:2] + b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert decode(marked).size == (300, 200)
    half = marked[: len(marked) // 2]
    assert fault(half + b"\0" * (len(marked) - len(half))) == "image is cut"
    assert fault(half) == "image is cut"


def test_pixels_of_a_bomb_are_never_made() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (8300, 40000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        assert fault(bomb) == f"image has more than {pictures.MOST_PIXELS} pixels"


def test_levels_are_counted_by_channel() -> None:
    image = Image.fromarray(pixels(4))
    expected = np.stack([np.bincount(pixels(4)[..., c].ravel(), minlength=256) for c in range(3)])
    assert np.array_equal(pictures.histogram(image), expected)
