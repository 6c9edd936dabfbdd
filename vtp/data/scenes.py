"""The built-in data set: seeded pictures of lit shapes on varied grounds, with captions, labels and factor columns.

A picture shows one to three objects. The label is colour x shape of the *main* one, which nothing hides and which covers 20 to
50 % of the picture; the others are smaller and lie beside or behind it. Picture `index` of `split` is a function of (seed, split,
index): who renders it, in which order and at which resolution does not matter. Each block of 64 consecutive indices, counted from
0, holds every class once, in random order.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from vtp.data.scene_backgrounds import background
from vtp.data.scene_grammar import BACKGROUND_WORDS, COLOUR_WORDS, MATERIAL_WORDS, POSITION_WORDS, SHAPE_WORDS, describe
from vtp.data.scene_shapes import SWING, Item, grid, paint, saturate, unit_area, unit_outline
from vtp.seeding import fold

COLOURS: tuple[str, ...] = tuple(COLOUR_WORDS)
SHAPES: tuple[str, ...] = tuple(SHAPE_WORDS)
# By label = colour index * 8 + shape index.
CLASSES: list[tuple[str, dict[str, str]]] = [
    (f"{colour} {shape}", {"colour": colour, "shape": shape}) for colour in COLOURS for shape in SHAPES
]
# Columns of every scene; those of objects that are not there hold "none".
FACTORS: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "material": tuple(MATERIAL_WORDS),
    "size": ("small", "medium", "large"),
    "background": tuple(BACKGROUND_WORDS),
    "num_objects": (1, 2, 3),
    "second_colour": (*COLOURS, "none"),
    "second_shape": (*SHAPES, "none"),
    "second_position": (*POSITION_WORDS, "none"),
    "third_colour": (*COLOURS, "none"),
    "third_shape": (*SHAPES, "none"),
}

# Grounds on which a colour would be hard to see, for any object of the scene.
CAMOUFLAGE: dict[str, tuple[str, ...]] = {
    "red": ("brick",),
    "orange": ("brick", "wood", "sand"),
    "yellow": ("sand",),
    "green": ("grass",),
    "blue": ("water", "sky", "night"),
    "purple": ("night",),
    "pink": (),
    "white": ("snow", "sky"),
}
AREA = (0.215, 0.46)  # share of the picture that the main object may be given
SIZES = (0.25, 0.32)  # shares at which small ends and large begins
COUNTS = (0.35, 0.75)  # cumulative probabilities of one and of two objects; three otherwise
REACH = 0.96  # how far from the middle an object may extend; the edge of the picture is at 1
TOWARDS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """A rendered picture, uint8 (S, S, 3), with its caption, label and factor columns."""

    picture: NDArray[np.uint8]
    caption: str
    label: int
    factors: dict[str, str | int]


@dataclass(frozen=True)
class Plan:
    """What to draw, before any pixel: the main object first, the lamp's direction, the ground, where the second object is."""

    items: tuple[Item, ...]
    background: str
    light: tuple[float, float, float]
    second_position: str

    def factors(self) -> dict[str, str | int]:
        """The factor columns of this scene."""
        main, *others = self.items
        share = unit_area(main.shape) * main.scale**2 / 4
        columns: dict[str, str | int] = {
            "colour": main.colour,
            "shape": main.shape,
            "material": main.material,
            "size": "small" if share < SIZES[0] else "medium" if share < SIZES[1] else "large",
            "background": self.background,
            "num_objects": len(self.items),
            "second_position": self.second_position,
        }
        for place, name in enumerate(("second", "third")):
            columns[f"{name}_colour"] = others[place].colour if place < len(others) else "none"
            columns[f"{name}_shape"] = others[place].shape if place < len(others) else "none"
        return {key: columns[key] for key in FACTORS}


def render(seed: int, split: str, index: int, image_size: int) -> Scene:
    """Scene `index` of `split` at `image_size` pixels; the same whatever was rendered before, and at every size."""
    label = label_of(seed, split, index)
    rng = Generator(PCG64(fold(seed, "scenes", split, index)))
    scene = plan(rng, label)
    factors = scene.factors()
    caption = describe(rng, factors)
    return Scene(draw(rng, scene, image_size), caption, label, factors)


def label_of(seed: int, split: str, index: int) -> int:
    """Label of scene `index`: each block of 64 scenes holds every class once, in an order of its own."""
    return int(_block(seed, split, index // len(CLASSES))[index % len(CLASSES)])


@functools.lru_cache(maxsize=64)
def _block(seed: int, split: str, block: int) -> NDArray[np.int64]:
    return Generator(PCG64(fold(seed, "scenes", split, "labels", block))).permutation(len(CLASSES))


def plan(rng: Generator, label: int) -> Plan:
    """A random scene whose main object is of class `label`."""
    colour, shape = COLOURS[label // len(SHAPES)], SHAPES[label % len(SHAPES)]
    ground = _choice(rng, [name for name in BACKGROUND_WORDS if name not in CAMOUFLAGE[colour]])
    count = 1 + int(np.searchsorted(COUNTS, rng.random()))
    position = _choice(rng, list(POSITION_WORDS)) if count > 1 else "none"
    main = _main(rng, colour, shape, position)
    colours = [name for name in COLOURS if name != colour and ground not in CAMOUFLAGE[name]]
    shapes = [name for name in SHAPES if name != shape]
    items = [main]
    for place in ("second", "third")[: count - 1]:
        other = Item(_choice(rng, shapes), _choice(rng, colours), _choice(rng, list(MATERIAL_WORDS)), 0.0, 0.0, 0.0, 0.0)
        colours.remove(other.colour)
        shapes.remove(other.shape)
        items.append(_placed(rng, other, items, position if place == "second" else "none"))
    # The lamp hangs above the upper edge, left or right of the middle.
    turn, height = rng.uniform(-2.5, -0.65), 0.72
    flat = math.sqrt(1 - height**2)
    return Plan(tuple(items), ground, (flat * math.cos(turn), flat * math.sin(turn), height), position)


def draw(rng: Generator, scene: Plan, image_size: int) -> NDArray[np.uint8]:
    """The picture of a plan, back to front: uint8 (S, S, 3)."""
    picture = background(scene.background, rng, image_size)
    for item in reversed(scene.items):
        paint(picture, item, scene.light, rng)
    # The lamp's cone: brighter on its side, darker towards the far corners.
    x, y = grid(image_size)
    lx, ly, _ = (np.float32(value * 0.13) for value in scene.light)
    picture *= np.float32(1.03) + lx * x + ly * y - np.float32(0.05) * (x * x + y * y)
    picture = saturate(picture) * np.float32(255) + np.float32(0.5)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0))


def _main(rng: Generator, colour: str, shape: str, position: str) -> Item:
    """The main object: of a random share of the picture, wholly inside it, and leaving room where the second object goes."""
    angle = rng.uniform(-SWING[shape], SWING[shape])
    left, right, top, bottom = _extent(shape, angle)
    share = rng.uniform(AREA[0], AREA[1] if position == "none" else 0.36 if position == "behind" else 0.28)
    widest = 2 * REACH / max(right - left, bottom - top)
    scale = min(math.sqrt(4 * share / unit_area(shape)), widest)
    # Anywhere it fits, mostly near the middle; with a second object beside it, near the other side.
    towards = TOWARDS.get(position, (0, 0))
    spread = 0.08 if position in TOWARDS else 0.17
    places = (min(max(0.5 - 0.5 * to + spread * rng.standard_normal(), 0), 1) for to in towards)
    ends = ((-REACH - scale * left, REACH - scale * right), (-REACH - scale * top, REACH - scale * bottom))
    x, y = (low + (high - low) * place for (low, high), place in zip(ends, places, strict=True))
    return Item(shape, colour, _choice(rng, list(MATERIAL_WORDS)), scale, x, y, angle)


def _placed(rng: Generator, item: Item, others: list[Item], position: str) -> Item:
    """`item` given a size and the best of 48 random places: where it has most room, or peeps out from behind the main object."""
    main = others[0]
    angle = rng.uniform(-SWING[item.shape], SWING[item.shape])
    x, y = rng.uniform(-0.75, 0.75, (2, 48)).astype(np.float32)
    if position == "behind":
        scale = rng.uniform(0.28, 0.40)
        best = int(np.abs(main.distance(x, y) - 0.3 * scale).argmin())
    else:
        room = np.minimum.reduce([other.distance(x, y) for other in others] + [REACH - np.abs(x), REACH - np.abs(y)])
        if position in TOWARDS:
            to_x, to_y = TOWARDS[position]
            right, down = x - np.float32(main.x), y - np.float32(main.y)
            # Within 40 degrees of that direction, whatever it costs in room.
            room -= 10 * np.maximum(np.abs(right * to_y + down * to_x) - 0.84 * (right * to_x + down * to_y), 0)
        best = int(room.argmax())
        scale = min(max(float(room[best]), 0.17), 0.34)
    return replace(item, scale=scale, x=float(x[best]), y=float(y[best]), angle=angle)


def _extent(shape: str, angle: float) -> tuple[float, float, float, float]:
    """Bounding box of the turned shape at scale 1, about its centre, in picture coordinates: left, right, top, bottom."""
    u, v = unit_outline(shape)
    x, y = u * math.cos(angle) - v * math.sin(angle), -(u * math.sin(angle) + v * math.cos(angle))
    return float(x.min()), float(x.max()), float(y.min()), float(y.max())


def _choice(rng: Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]
