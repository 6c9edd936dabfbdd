"""Eight shapes as signed distances, their materials, and how a lit one is painted onto a picture.

A distance field makes three things cheap at any resolution: an anti-aliased edge (coverage is the distance in pixels), a soft
shadow (the same field, moved and blurred) and a bevel (the slope of the surface falls off with depth). Picture coordinates run
from -1 to 1, y downwards; a shape's own coordinates have unit size and y upwards. Distance functions: after the catalogue of
I. Quilez, "2D distance functions" (iquilezles.org); those of triangle and cross are lower bounds, which suffices here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Two tones each: the colour, and what stripes, dots and checks are painted with: near enough to be no other class's colour.
PALETTE: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "red": ((0.86, 0.10, 0.12), (0.50, 0.03, 0.07)),
    "orange": ((1.00, 0.50, 0.05), (1.00, 0.76, 0.45)),
    "yellow": ((1.00, 0.87, 0.12), (0.80, 0.62, 0.03)),
    "green": ((0.10, 0.66, 0.24), (0.55, 0.88, 0.52)),
    "blue": ((0.12, 0.32, 0.88), (0.48, 0.70, 0.98)),
    "purple": ((0.47, 0.16, 0.72), (0.72, 0.50, 0.92)),
    "pink": ((1.00, 0.47, 0.72), (0.84, 0.22, 0.52)),
    "white": ((0.96, 0.96, 0.95), (0.66, 0.69, 0.74)),
}


@dataclass(frozen=True)
class Item:
    """One object of a scene; `x`, `y` and `scale` in picture coordinates, `angle` in radians."""

    shape: str
    colour: str
    material: str
    scale: float
    x: float
    y: float
    angle: float

    def local(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Picture coordinates as the shape's own."""
        cosine, sine = np.float32(math.cos(self.angle) / self.scale), np.float32(math.sin(self.angle) / self.scale)
        across, up = x - np.float32(self.x), np.float32(self.y) - y
        return across * cosine + up * sine, up * cosine - across * sine

    def distance(self, x: Array, y: Array) -> Array:
        """Signed distance to the outline in picture coordinates, negative inside."""
        return DISTANCES[self.shape](*self.local(x, y)) * np.float32(self.scale)


def saturate(value: Array) -> Array:
    """`value` limited to [0, 1]; `np.clip` takes several times as long on small arrays."""
    return np.minimum(np.maximum(value, np.float32(0)), np.float32(1))


def _length(x: Array, y: Array) -> Array:
    # Not np.hypot, which guards against overflow at five times the price.
    return np.sqrt(x * x + y * y)


def _circle(x: Array, y: Array) -> Array:
    return _length(x, y) - np.float32(1)


def _square(x: Array, y: Array) -> Array:
    x, y = np.abs(x) - np.float32(0.75), np.abs(y) - np.float32(0.75)
    outside = _length(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - np.float32(0.12)


def _triangle(x: Array, y: Array) -> Array:
    y = y + np.float32(0.22)
    return np.maximum(np.abs(x) * np.float32(0.8660254) + y * np.float32(0.5), -y) - np.float32(0.56)


def _star(x: Array, y: Array) -> Array:
    # Two reflections fold the five arms onto the right half of the upper one.
    cosine, sine = np.float32(0.809016994), np.float32(0.587785252)
    x = np.abs(x)
    fold = np.float32(2) * np.maximum(cosine * x - sine * y, 0)
    x, y = x - fold * cosine, y + fold * sine
    fold = np.float32(2) * np.maximum(-cosine * x - sine * y, 0)
    x, y = np.abs(x + fold * cosine), y + fold * sine - np.float32(0.94)
    # The edge of the half arm, from its tip (0, 0.94) to the notch.
    edge_x, edge_y = np.float32(0.52 * sine), np.float32(0.52 * cosine - 0.94)
    along = saturate((x * edge_x + y * edge_y) * (1 / (edge_x**2 + edge_y**2)))
    away = _length(x - edge_x * along, y - edge_y * along)
    return np.copysign(away, y * edge_x - x * edge_y) - np.float32(0.06)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(_length(x, y) - np.float32(0.71)) - np.float32(0.29)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - np.float32(0.95), short - np.float32(0.36))


def _heart(x: Array, y: Array) -> Array:
    x, y = np.abs(x) * np.float32(1 / 1.7), (y + np.float32(0.95)) * np.float32(1 / 1.7)
    lobe = _length(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(0.35355339)
    diagonal = np.maximum((x + y) * np.float32(0.5), 0)
    flank = np.minimum(_length(x, y - 1), _length(x - diagonal, y - diagonal)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, flank) * np.float32(1.7)


def _moon(x: Array, y: Array) -> Array:
    # A unit disc less one of radius 0.76 whose centre is 0.58 to the right; their outlines meet at the tips (tip_x, +-tip_y).
    x, y = x - np.float32(0.2), np.abs(y)
    tip_x = (1 - 0.76**2 + 0.58**2) / (2 * 0.58)
    tip_y = math.sqrt(1 - tip_x**2)
    crescent = np.maximum(_length(x, y) - np.float32(1), np.float32(0.76) - _length(x - np.float32(0.58), y))
    beyond = x * np.float32(tip_y) - y * np.float32(tip_x) > np.float32(0.58) * np.maximum(np.float32(tip_y) - y, 0)
    return np.where(beyond, _length(x - np.float32(tip_x), y - np.float32(tip_y)), crescent)


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
    "ring": _ring, "cross": _cross, "heart": _heart, "moon": _moon,
}  # fmt: skip
# Radians either way that a shape may be turned and still be seen for what it is.
SWING = {"circle": 3.1, "square": 0.3, "triangle": 0.35, "star": 0.6, "ring": 3.1, "cross": 0.3, "heart": 0.35, "moon": 0.9}


@functools.cache
def grid(image_size: int) -> tuple[Array, Array]:
    """Picture coordinates of the pixel centres, in [-1, 1]: x (1, S) and y (S, 1)."""
    axis = (2 * np.arange(image_size, dtype=np.float32) + 1) / np.float32(image_size) - 1
    return axis[None], axis[:, None]


@functools.cache
def unit_area(shape: str) -> float:
    """Area of the shape at scale 1, in its own units."""
    x, y = grid(512)
    return float((DISTANCES[shape](x * np.float32(1.5), y * np.float32(1.5)) < 0).mean() * 9)


@functools.cache
def unit_outline(shape: str) -> tuple[Array, Array]:
    """Where 120 rays from the centre leave the shape at scale 1 for the last time: x and y, (120,) each."""
    turn = np.linspace(0, 2 * np.pi, 120, endpoint=False, dtype=np.float32)[:, None]
    radius = np.linspace(0, 1.5, 301, dtype=np.float32)
    inside = DISTANCES[shape](np.cos(turn) * radius, np.sin(turn) * radius) < 0
    far = np.where(inside, radius, 0).max(1)
    return far * np.cos(turn[:, 0]), far * np.sin(turn[:, 0])


def smooth_noise(rng: Generator, image_size: int, rows: int, columns: int) -> Array:
    """Smooth noise of about unit variance whose features do not depend on the resolution: (S, S).

    A grid of `rows` x `columns` normal numbers, read through cubic B-splines.
    """
    values = rng.standard_normal((rows, columns), dtype=np.float32)
    return _splines(image_size, rows) @ (values * np.float32(2)) @ _splines(image_size, columns).T


@functools.cache
def _splines(image_size: int, knots: int) -> Array:
    """Weights of each knot at each pixel, (S, knots); rows add up to 1."""
    pixels = (np.arange(image_size) + 0.5) / image_size * (knots - 1)
    away = np.abs(pixels[:, None] - np.arange(knots))
    weights = np.where(away < 1, 2 / 3 - away**2 * (1 - away / 2), np.clip(2 - away, 0, None) ** 3 / 6)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def paint(picture: Array, item: Item, light: tuple[float, float, float], rng: Generator) -> None:
    """Draw the item and its shadow over `picture` (3, S, S) in [0, 1], in place; `light` is the unit vector towards the lamp."""
    image_size = picture.shape[-1]
    away, blur = 0.16 + 0.22 * item.scale, 0.09 + 0.16 * item.scale
    window = _window(item, 0.7 * away + 0.5 * blur, image_size)
    x, y = grid(image_size)
    x, y, canvas = x[:, window[1]], y[window[0]], picture[:, *window]
    fall = item.distance(x + np.float32(light[0] * away), y + np.float32(light[1] * away))
    shadow = saturate(np.float32(0.5) - fall * np.float32(1 / blur))
    canvas *= 1 - np.float32(0.55) * (shadow * shadow * (3 - 2 * shadow))

    distance = item.distance(x, y)
    cover = saturate(np.float32(0.5) - distance * np.float32(image_size / 2))
    diffuse, gloss = _light(item, distance, light, image_size)
    surface = _surface(item, x, y, image_size, rng, window) * diffuse
    surface += gloss
    np.minimum(surface, 1, out=surface)
    surface -= canvas
    surface *= cover
    canvas += surface


def _window(item: Item, margin: float, image_size: int) -> tuple[slice, slice]:
    """Rows and columns that hold all of the item and `margin` around it; no shape reaches beyond 1.25 at scale 1."""
    reach = 1.25 * item.scale + margin
    ends = [((centre + side * reach + 1) * image_size / 2, side) for centre in (item.y, item.x) for side in (-1, 1)]
    top, bottom, left, right = (min(max(int(end) + (side > 0), 0), image_size) for end, side in ends)
    return slice(top, bottom), slice(left, right)


def _light(item: Item, distance: Array, light: tuple[float, float, float], image_size: int) -> tuple[Array, Array]:
    """Diffuse factor and white highlight of a bevelled surface, (h, w) each."""
    glossy = item.material == "glossy"
    bevel, steep = (0.5, 1.4) if glossy else (0.36, 1.1)
    # The surface falls off outwards along the gradient of the distance, steepest at the outline.
    slope = 1 - saturate(distance * np.float32(-1 / (bevel * item.scale)))
    slope *= np.float32(steep * image_size / 4)
    normal_x, normal_y = np.zeros_like(distance), np.zeros_like(distance)
    np.subtract(distance[:, 2:], distance[:, :-2], out=normal_x[:, 1:-1])
    np.subtract(distance[2:], distance[:-2], out=normal_y[1:-1])
    # Where facets meet, the mean of their normals is nobody's, and its highlight would flicker along the crease.
    crease = (normal_x * normal_x + normal_y * normal_y) * np.float32((image_size / 4) ** 2)
    normal_x *= slope
    normal_y *= slope
    length = 1 / np.sqrt(normal_x * normal_x + normal_y * normal_y + 1)
    lx, ly, lz = (np.float32(value) for value in light)
    towards = normal_x * lx + normal_y * ly
    diffuse = np.maximum((towards + lz) * length, 0)
    diffuse *= np.float32(0.55)
    diffuse += np.float32(0.55)
    # Blinn and Phong's highlight with the viewer straight above: the half vector is (lx, ly, lz + 1), normalised.
    shine = np.maximum((towards + (lz + 1)) * length, 0) * (1 / np.sqrt(2 + 2 * lz))
    for _ in range(5 if glossy else 4):
        shine *= shine
    if not glossy:
        return diffuse, shine * np.float32(0.08)
    level = ((1 + lz) / 2) ** 16  # what a level surface reflects; a haze that says nothing
    return diffuse, np.maximum(shine - level, 0) * (crease * np.float32(1.05))


def _surface(item: Item, x: Array, y: Array, image_size: int, rng: Generator, window: tuple[slice, slice]) -> Array:
    """Colour of the unlit material, (3, h, w) or (3, 1, 1); a slight jitter gives each object a tint of its own."""
    base, tone = _tones(item.colour) + rng.uniform(-0.035, 0.035, (3, 1, 1)).astype(np.float32)
    if item.material == "rough":
        return base * (np.float32(0.92) + np.float32(0.13) * smooth_noise(rng, image_size, 44, 44)[window])
    if item.material in ("plain", "glossy"):
        return base
    # The pattern turns with the object; a small object carries fewer repeats, so that they stay wider than a pixel.
    u, v = item.local(x, y)
    repeats = 1.15 + 2.0 * item.scale
    tilt = rng.uniform(0, math.pi)
    cosine, sine = np.float32(math.cos(tilt) * repeats), np.float32(math.sin(tilt) * repeats)
    sharp = np.float32(item.scale / repeats * image_size / 2)
    a = _wave(u * cosine + v * sine + np.float32(rng.uniform()))
    if item.material == "striped":
        return base + (tone - base) * saturate((a - np.float32(0.29)) * sharp + np.float32(0.5))
    b = _wave(v * cosine - u * sine + np.float32(rng.uniform()))
    if item.material == "dotted":
        amount = (np.float32(0.31) - _length(a, b)) * sharp
    else:
        amount = (a - np.float32(0.25)) * (b - np.float32(0.25)) * (4 * sharp)
    return base + (tone - base) * saturate(amount + np.float32(0.5))


@functools.cache
def _tones(colour: str) -> Array:
    """The two tones of a colour, (2, 3, 1, 1)."""
    return np.array(PALETTE[colour], np.float32)[..., None, None]


def _wave(value: Array) -> Array:
    """Triangle wave of period 1: 0 at whole numbers, 0.5 half-way."""
    return np.abs(value - np.rint(value))
