"""Sheets of pictures for people to look at: plain grids, grids with captions, titled rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vtp.artifacts import aside

Sheet = NDArray[np.uint8]
"""One picture to save or show: (H, W, 3), 0 to 255."""

SHOWN = 128
"""Pixels: pictures up to half of this side are enlarged by a whole factor before they go onto a sheet with text."""

PAPER, INK, QUIET = (255, 255, 255), (31, 35, 40), (87, 96, 106)
GAP = 6
MARGIN = 14
CAPTION_SIZE, CAPTION_LINE, CAPTION_LINES = 13, 16, 2
TITLE_SIZE, TITLE_LINE = 16, 28


def grid(pictures: Tensor, columns: int, padding: int = 2) -> Sheet:
    """Pictures in reading order on white, at their own size, `padding` pixels around each.

    Args:
        pictures: (B, 3, H, W), uint8 or float in [0, 1]; floats outside are clamped.
        columns: pictures in one line; the last line may be shorter.

    Returns:
        (lines * (H + padding) + padding, columns * (W + padding) + padding, 3).
    """
    return _tiled(_bytes(pictures), columns, padding)


def captioned(pictures: Tensor, captions: Sequence[str], columns: int) -> Sheet:
    """Pictures in reading order with their captions below: at most two lines each, cut with an ellipsis.

    Pictures up to half of `SHOWN` are enlarged by a whole factor (64 pixels by 2), larger ones stay as they are.
    """
    pixels = _enlarged(_bytes(pictures))
    count, height, width, _ = pixels.shape
    if len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} pictures; give one for each.")
    _check_columns(columns)
    columns = min(columns, count)
    font = ImageFont.load_default(CAPTION_SIZE)
    texts = [_wrapped(caption, font, width) for caption in captions]
    cell = height + 4 + CAPTION_LINE * max(map(len, texts)) + 2 * GAP
    sheet = _blank(columns * (width + GAP) - GAP + 2 * MARGIN, -(-count // columns) * cell - 2 * GAP + 2 * MARGIN)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pixels, texts, strict=True)):
        x, y = MARGIN + i % columns * (width + GAP), MARGIN + i // columns * cell
        sheet.paste(Image.fromarray(picture), (x, y))
        for j, line in enumerate(lines):
            middle, below = x + width / 2, y + height + 4 + CAPTION_LINE * j
            draw.text((middle, below), line, fill=QUIET, font=font, anchor="ma")
    return np.array(sheet)


def labelled_rows(rows: Sequence[tuple[str, Tensor]]) -> Sheet:
    """Rows of pictures, each under its title, so that one column can be compared from top to bottom.

    Args:
        rows: (title, pictures (B, 3, H, W)) from top to bottom; pictures as in `grid`, enlarged as in `captioned`.
    """
    if not rows:
        raise ValueError("labelled_rows got no rows; give at least one (title, pictures).")
    strips = [(title, _tiled(_enlarged(_bytes(pictures)), len(pictures), GAP)[GAP:-GAP, GAP:-GAP]) for title, pictures in rows]
    width = max(strip.shape[1] for _, strip in strips)
    height = sum(TITLE_LINE + strip.shape[0] for _, strip in strips) + 2 * GAP * (len(strips) - 1)
    sheet = _blank(width + 2 * MARGIN, height + 2 * MARGIN)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE_SIZE)
    y = MARGIN
    for title, strip in strips:
        draw.text((MARGIN, y + TITLE_LINE / 2 - 2), title, fill=INK, font=font, anchor="lm")
        sheet.paste(Image.fromarray(strip), (MARGIN, y + TITLE_LINE))
        y += TITLE_LINE + strip.shape[0] + 2 * GAP
    return np.array(sheet)


def save_png(path: Path, image: Sheet) -> None:
    """Write (H, W, 3) uint8 as PNG: the same pixels give the same bytes, and the file is replaced in one move."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{path.name} got {image.dtype} of shape {image.shape}; a PNG needs uint8 (H, W, 3).")
    with aside(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")


def _bytes(pictures: Tensor) -> Sheet:
    """(B, 3, H, W) of either kind as (B, H, W, 3) uint8, rounded to the nearest."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise ValueError(f"pictures have the shape {tuple(pictures.shape)}; at least one of (B, 3, H, W) is needed.")
    pictures = pictures.detach().cpu().permute(0, 2, 3, 1)
    if pictures.dtype != torch.uint8:
        if not pictures.is_floating_point():
            raise ValueError(f"pictures are {pictures.dtype}; use uint8, or floats in [0, 1].")
        pictures = pictures.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pictures.numpy())


def _tiled(pixels: Sheet, columns: int, padding: int) -> Sheet:
    _check_columns(columns)
    count, height, width, _ = pixels.shape
    columns = min(columns, count)
    lines = -(-count // columns)
    sheet = np.full((lines * (height + padding) + padding, columns * (width + padding) + padding, 3), 255, dtype=np.uint8)
    for i, picture in enumerate(pixels):
        y, x = padding + i // columns * (height + padding), padding + i % columns * (width + padding)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def _check_columns(columns: int) -> None:
    if columns < 1:
        raise ValueError(f"columns={columns} is too small; it must be at least 1.")


def _enlarged(pixels: Sheet) -> Sheet:
    """Every pixel as a small square: a smooth enlargement would flatter the picture, and cost 2.4 times the bytes as PNG."""
    factor = max(1, SHOWN // max(pixels.shape[1:3]))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` broken between words to lines of `width` pixels; what does not fit on the last one is cut."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width and len(lines) < CAPTION_LINES:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"
