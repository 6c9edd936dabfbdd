from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from tests.data.stub import pixels
from vtp.data import duplicates


def test_keys_met_before_are_found_whatever_their_bucket(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [(number, rng.integers(0, 300, 90).astype(np.uint64), np.arange(90) * 2) for number in range(5)]
    seen: set[int] = set()
    expected = set()
    for number, hashes, rows in parts:
        for value, row in zip(hashes.tolist(), rows.tolist(), strict=True):
            if value in seen:
                expected.add((number, row))
            seen.add(value)
    found = list(duplicates.repeated(iter(parts), tmp_path / "keys"))
    assert len(found) == len(expected)
    assert set(found) == expected
    assert list((tmp_path / "keys").iterdir()) == []


def test_pictures_are_alike_within_so_many_bits() -> None:
    rng = np.random.default_rng(1)
    looks, others = (rng.integers(0, 2**64, count, dtype=np.uint64) for count in (200, 70))
    looks[:50] = others[:50]
    for i in range(50):
        for bit in range(i % 7):
            looks[i] ^= np.uint64(1 << (9 * bit))
    expected = [min((int(look) ^ int(other)).bit_count() for other in others) <= 4 for look in looks]
    assert duplicates.alike(looks, others, 4).tolist() == expected
    assert sum(expected) >= 36
    assert not duplicates.alike(looks, others[:0], 4).any()
    assert duplicates.alike(looks[:0], others, 4).shape == (0,)


def test_many_hashes_are_compared_in_pieces(monkeypatch) -> None:
    looks = np.arange(1000, dtype=np.uint64) << np.uint64(40)
    monkeypatch.setattr(duplicates, "ROWS", 64)
    assert duplicates.alike(looks, looks[-3:], 0).nonzero()[0].tolist() == [997, 998, 999]


def test_the_look_of_a_picture_is_imagehashs_and_survives_scaling() -> None:
    image = Image.fromarray(pixels(1, height=12, width=16)).resize((160, 120), Image.Resampling.BICUBIC)
    hashed = duplicates.look_hash(image)
    assert hashed == int(str(imagehash.phash(image)), 16)
    assert (hashed ^ duplicates.look_hash(image.resize((96, 72)))).bit_count() <= 4


def test_hashes_tell_size_and_pixels_apart() -> None:
    data = pixels(2)
    one = duplicates.pixel_hash(Image.fromarray(data))
    assert one != duplicates.pixel_hash(Image.fromarray(data.reshape(8, 32, 3)))
    data[0, 0, 0] ^= 1
    assert one != duplicates.pixel_hash(Image.fromarray(data))
    assert 0 <= one < 2**64
