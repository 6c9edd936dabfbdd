from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.data.stub import png
from vtp.data import decode
from vtp.data.decode import square
from vtp.data.pictures import centre_crop


def photo(height: int, width: int) -> Image.Image:
    """Smooth colours, different in every corner."""
    rng = np.random.default_rng((height, width))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes, side: int, short_side: int | None = None) -> np.ndarray:
    out = torch.empty(3, side, side, dtype=torch.uint8)
    square(data, short_side or min(Image.open(io.BytesIO(data)).size), out)
    return out.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("size", [(24, 24), (24, 31), (30, 24)])
def test_a_stored_jpeg_is_cropped_to_pillows_bits(options: dict[str, object], size: tuple[int, int]) -> None:
    data = encoded(photo(*size), **options)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    top, left = (size[0] - 24) // 2, (size[1] - 24) // 2
    assert np.array_equal(decoded(data, 24), pixels[top : top + 24, left : left + 24])


def test_a_stored_png_keeps_its_bits() -> None:
    image = photo(20, 33)
    assert np.array_equal(decoded(encoded(image, "PNG"), 20), np.asarray(image)[:, 6:26])


@pytest.mark.parametrize("size", [(45, 30), (29, 60), (18, 20)])
def test_another_size_is_resampled_as_evaluation_does_it(size: tuple[int, int]) -> None:
    data = encoded(photo(*size))
    assert np.array_equal(decoded(data, 24), np.asarray(centre_crop(Image.open(io.BytesIO(data)), 24)))


def test_a_far_larger_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(400, 640)
    data = encoded(image, quality=95)
    monkeypatch.setattr(decode, "_jpeg", lambda data: pytest.fail("decoded in full"))
    whole = np.asarray(centre_crop(image, 48)).astype(int)
    assert np.abs(decoded(data, 48).astype(int) - whole).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tag_turns_a_picture_as_pillow_does(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encoded(photo(24, 32), quality=95, exif=tags, icc_profile=bytes(9000))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    top, left = ((length - 24) // 2 for length in upright.shape[:2])
    assert np.array_equal(decoded(data, 24), upright[top : top + 24, left : left + 24])


def test_unusual_jpegs_take_the_way_of_all_other_pictures() -> None:
    image = photo(24, 32)
    grey = encoded(image.convert("L"))
    assert np.array_equal(decoded(grey, 24), np.asarray(Image.open(io.BytesIO(grey)).convert("RGB"))[:, 4:28])
    cmyk = encoded(image.convert("CMYK"), quality=95)
    assert np.abs(decoded(cmyk, 24).astype(int) - np.asarray(image)[:, 4:28]).mean() < 5


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_broken_bytes_are_an_error_of_one_line(damage: str, format: str) -> None:
    data = png(np.asarray(photo(24, 24)), format)
    broken = {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data)), "text": b"<html>no</html>"}[damage]
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        decoded(broken, 24, 24)
