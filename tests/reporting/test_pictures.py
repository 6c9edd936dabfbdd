from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vtp.reporting.pictures import MARGIN, captioned, grid, labelled_rows, save_png


def pictures(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_grid_puts_each_picture_in_its_place() -> None:
    batch = pictures(5, side=4)
    sheet = grid(batch, columns=3, padding=2)
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert sheet.dtype == np.uint8
    for i in range(5):
        y, x = 2 + 6 * (i // 3), 2 + 6 * (i % 3)
        np.testing.assert_array_equal(sheet[y : y + 4, x : x + 4], batch[i].permute(1, 2, 0).numpy())
    covered = np.zeros(sheet.shape[:2], bool)
    for i in range(5):
        covered[2 + 6 * (i // 3) : 6 + 6 * (i // 3), 2 + 6 * (i % 3) : 6 + 6 * (i % 3)] = True
    assert (sheet[~covered] == 255).all()


def test_floats_are_rounded_and_clamped() -> None:
    levels = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.5])
    sheet = grid(levels.view(1, 1, 1, -1).expand(1, 3, 1, -1), columns=1, padding=0)
    assert sheet[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_bytes_and_their_floats_give_the_same_sheet() -> None:
    batch = pictures(3)
    np.testing.assert_array_equal(grid(batch, columns=2), grid(batch.double() / 255, columns=2))


def test_captioned_enlarges_small_pictures_without_inventing_pixels() -> None:
    batch = pictures(3)
    sheet = captioned(batch, ["red star", "a", "b"], columns=2)
    first = sheet[MARGIN : MARGIN + 128, MARGIN : MARGIN + 128]
    np.testing.assert_array_equal(first[::2, ::2], batch[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(first[::2, ::2], first[1::2, 1::2])


def test_large_pictures_keep_their_size() -> None:
    assert labelled_rows([("originals", pictures(2, side=256))]).shape[1] == 2 * 256 + 6 + 2 * MARGIN


def test_captions_are_drawn_below_their_pictures() -> None:
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    sheet = captioned(white, ["red star", ""], columns=2)
    middle = sheet.shape[1] // 2
    assert (sheet[:, :middle] < 200).any()
    assert (sheet[:, middle:] == 255).all()
    assert (sheet[: MARGIN + 128] == 255).all()


@pytest.mark.parametrize("caption", ["word " * 40, "w" * 200])
def test_long_captions_stay_in_their_column(caption: str) -> None:
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    sheet = captioned(white, [caption, ""], columns=2)
    assert (sheet[:, MARGIN + 128 + 6 :] == 255).all()
    assert sheet.shape[0] <= captioned(white, ["enough words for two lines", ""], columns=2).shape[0]


def test_rows_line_up_under_their_titles() -> None:
    before, after = pictures(3), pictures(3, seed=1)
    sheet = labelled_rows([("before GAN", before), ("after GAN", after)])
    left = sheet[:, MARGIN : MARGIN + 128 : 2]
    for batch in (before, after):
        row = batch[0].permute(1, 2, 0).numpy()[0]
        assert sum(np.array_equal(line, row) for line in left) == 2


def test_png_is_the_same_twice_small_and_leaves_no_trace(tmp_path) -> None:
    smooth = torch.nn.functional.interpolate(pictures(64, side=16).float() / 255, size=64, mode="bicubic")
    sheet = captioned(smooth, [f"class {i}" for i in range(64)], columns=8)
    for name in ("new/a.png", "new/b.png", "new/a.png"):
        save_png(tmp_path / name, sheet)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()
    assert (tmp_path / "new/a.png").stat().st_size < 1_000_000
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "new/a.png") as image:
        np.testing.assert_array_equal(np.array(image), sheet)


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="2 captions for 3 pictures"):
        captioned(pictures(3), ["a", "b"], columns=2)
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        grid(pictures(1)[0], columns=1)
    with pytest.raises(ValueError, match="columns=0"):
        grid(pictures(1), columns=0)
    with pytest.raises(ValueError, match="int64"):
        grid(pictures(1).long(), columns=1)
    with pytest.raises(ValueError, match="no rows"):
        labelled_rows([])
    with pytest.raises(ValueError, match="float64"):
        save_png(tmp_path / "a.png", np.zeros((2, 2, 3)))  # type: ignore[arg-type]
