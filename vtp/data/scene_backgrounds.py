"""Ten grounds for rendered scenes, each a few fields of smooth noise between two or three colours."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from vtp.data.scene_shapes import Array, grid, saturate, smooth_noise

Colour = tuple[float, float, float]


def background(name: str, rng: Generator, image_size: int) -> Array:
    """The ground called `name`, unlit: (3, S, S) in about [0, 1]."""
    picture = GROUNDS[name](rng, image_size)
    picture *= rng.uniform(0.94, 1.06, (3, 1, 1)).astype(np.float32)
    return picture


def _mix(first: Colour, second: Colour, amount: Array) -> Array:
    """From `first` where `amount` (S, S) is 0 to `second` where it is 1: (3, S, S)."""
    start, end = (np.array(colour, np.float32)[:, None, None] for colour in (first, second))
    return start + (end - start) * amount


def _line(away: Array, width: float, image_size: int) -> Array:
    """1 on a line `width` wide in picture coordinates, 0 off it, given the distance from its middle: (S, S)."""
    return saturate((np.float32(width / 2) - away) * np.float32(image_size / 2) + np.float32(0.5))


def _squares(axis: Array, count: int, image_size: int) -> Array:
    """`count` alternating bands of -1 and 1 along a coordinate, with anti-aliased borders."""
    place = (axis + 1) * np.float32(count / 4)
    return np.clip((np.abs(place - np.rint(place)) - np.float32(0.25)) * np.float32(4 * image_size / count), -1, 1)


def _plain(rng: Generator, size: int) -> Array:
    x, y = grid(size)
    hue, turn, value = rng.uniform(), rng.uniform(0, 6.28), rng.uniform(0.42, 0.68)
    dark = colorsys.hsv_to_rgb(hue, 0.30, value * 0.75)
    bright = colorsys.hsv_to_rgb(hue + rng.uniform(-0.12, 0.12), 0.24, value * 1.2)
    ramp = np.float32(0.5) + np.float32(0.35 * np.cos(turn)) * x + np.float32(0.35 * np.sin(turn)) * y
    return _mix(dark, bright, saturate(ramp))


def _sand(rng: Generator, size: int) -> Array:
    x, y = grid(size)
    drift = smooth_noise(rng, size, 5, 5)
    lean = np.float32(rng.uniform(-0.5, 0.5))
    ripple = np.sin((y + lean * x) * np.float32(rng.uniform(13, 19)) + drift * np.float32(1.6))
    grain = smooth_noise(rng, size, 56, 56)
    tone = np.float32(0.55) + np.float32(0.22) * ripple + np.float32(0.14) * grain
    return _mix((0.68, 0.55, 0.38), (0.90, 0.79, 0.60), tone)


def _grass(rng: Generator, size: int) -> Array:
    blades = smooth_noise(rng, size, 16, 60) + np.float32(0.6) * smooth_noise(rng, size, 30, 60)
    blades += np.float32(0.5) * smooth_noise(rng, size, 5, 5)
    return _mix((0.09, 0.24, 0.06), (0.40, 0.58, 0.20), saturate(np.float32(0.5) + np.float32(0.25) * blades))


def _sky(rng: Generator, size: int) -> Array:
    _, y = grid(size)
    picture = _mix((0.25, 0.50, 0.84), (0.66, 0.84, 0.96), np.float32(0.5) + np.float32(0.5) * y)
    puffs = smooth_noise(rng, size, 5, 4) + np.float32(0.5) * smooth_noise(rng, size, 11, 8)
    puffs += np.float32(0.25) * smooth_noise(rng, size, 24, 18)
    cloud = saturate(np.float32(0.55) * (puffs - np.float32(rng.uniform(-0.1, 0.5))))
    white = np.array([0.97, 0.98, 1.0], np.float32)[:, None, None]
    return picture + (white - picture) * cloud


def _wood(rng: Generator, size: int) -> Array:
    _, y = grid(size)
    planks = int(rng.integers(3, 6))
    place = (y + 1) * np.float32(planks / 2)
    plank = np.minimum(place.astype(np.int64), planks - 1)
    shade = rng.normal(0, 0.14, planks).astype(np.float32)[plank]
    bend = smooth_noise(rng, size, 9, 4)
    rings = np.sin(y * np.float32(34) + bend * np.float32(2.6) + plank.astype(np.float32) * np.float32(2.2))
    grain = smooth_noise(rng, size, 60, 6)
    tone = np.float32(0.55) + shade + np.float32(0.12) * rings + np.float32(0.16) * grain
    picture = _mix((0.36, 0.21, 0.11), (0.72, 0.49, 0.29), tone)
    gap = np.abs(place - np.rint(place)) * np.float32(2 / planks)
    picture *= 1 - np.float32(0.65) * _line(gap, 0.035, size)
    return picture if rng.random() < 0.5 else np.ascontiguousarray(picture.transpose(0, 2, 1))


def _tiles(rng: Generator, size: int) -> Array:
    x, y = grid(size)
    count, hue = int(rng.integers(4, 7)), rng.uniform()
    dark = colorsys.hsv_to_rgb(hue, 0.22, rng.uniform(0.30, 0.45))
    bright = colorsys.hsv_to_rgb(hue, 0.07, rng.uniform(0.70, 0.82))
    across, down = (_squares(axis, count, size) for axis in (x, y))
    picture = _mix(dark, bright, np.float32(0.5) + np.float32(0.5) * across * down)
    picture *= 1 + np.float32(0.05) * smooth_noise(rng, size, 7, 7)
    return picture


def _water(rng: Generator, size: int) -> Array:
    _, y = grid(size)
    swell, ripple = smooth_noise(rng, size, 9, 6), smooth_noise(rng, size, 20, 12)
    light = np.maximum(1 - np.abs(swell + np.float32(0.35) * ripple), 0)
    light *= light
    light *= light
    depth = np.float32(0.5) + np.float32(0.35) * y + np.float32(0.12) * ripple
    picture = _mix((0.02, 0.27, 0.42), (0.08, 0.50, 0.60), depth)
    picture += np.array([0.42, 0.44, 0.38], np.float32)[:, None, None] * light
    return picture


def _night(rng: Generator, size: int) -> Array:
    x, y = grid(size)
    haze = smooth_noise(rng, size, 4, 5)
    glow = saturate(np.float32(0.45) + np.float32(0.4) * y + np.float32(0.18) * haze)
    picture = _mix((0.02, 0.03, 0.11), (0.15, 0.13, 0.33), glow)
    places = rng.uniform(-1, 1, (2, 34)).astype(np.float32)
    bright = (rng.uniform(0.2, 1.1, 34) ** 2).astype(np.float32)
    width = np.float32(2 * 0.021**2)
    rows = np.exp(-((y - places[0]) ** 2) / width)
    columns = np.exp(-((x.T - places[1]) ** 2) / width)
    picture += np.array([1.0, 0.97, 0.86], np.float32)[:, None, None] * ((rows * bright) @ columns.T)
    return picture


def _brick(rng: Generator, size: int) -> Array:
    x, y = grid(size)
    courses = int(rng.integers(5, 8))
    row_place = (y + 1) * np.float32(courses / 2)
    row = np.minimum(row_place.astype(np.int64), courses - 1)
    place = (x + 1) * np.float32(courses / 4) + np.float32(0.5) * (row % 2).astype(np.float32) + np.float32(rng.uniform())
    shade = rng.normal(0, 0.2, (courses, courses)).astype(np.float32)[row, place.astype(np.int64)]
    grain = smooth_noise(rng, size, 40, 40)
    picture = _mix((0.40, 0.19, 0.14), (0.66, 0.36, 0.27), np.float32(0.5) + shade + np.float32(0.15) * grain)
    bed = np.abs(row_place - np.rint(row_place)) * np.float32(2 / courses)
    joint = np.abs(place - np.rint(place)) * np.float32(4 / courses)
    mortar = _line(np.minimum(bed, joint), 0.05, size)
    picture += (np.array([0.66, 0.61, 0.56], np.float32)[:, None, None] - picture) * mortar
    return picture


def _snow(rng: Generator, size: int) -> Array:
    drifts = smooth_noise(rng, size, 6, 5)
    glitter = smooth_noise(rng, size, 50, 50)
    tone = np.float32(0.62) + np.float32(0.22) * drifts + np.float32(0.08) * glitter
    picture = _mix((0.62, 0.71, 0.84), (0.95, 0.97, 1.0), tone)
    picture += np.float32(0.5) * np.maximum(glitter - np.float32(2.2), 0)
    return picture


GROUNDS: dict[str, Callable[[Generator, int], Array]] = {
    "plain": _plain, "sand": _sand, "grass": _grass, "sky": _sky, "wood": _wood,
    "tiles": _tiles, "water": _water, "night": _night, "brick": _brick, "snow": _snow,
}  # fmt: skip
