"""Captions for rendered scenes: a small grammar with synonyms and several word orders.

The first object named is always the main one, and nine times in ten each of its two class words is the canonical one, so a prompt
such as "a red star" means at test time what it meant in training. Captions are lower-case, five words long on average and 21 at
most.

What is not the class is mentioned sparingly: captions that all name background, size and second object can be told apart without
a look at the shape, and a contrast that need not learn it learns it late.
"""

from __future__ import annotations

from collections.abc import Mapping

from numpy.random import Generator

# Canonical word -> synonyms; the order of the keys is the order of the labels.
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine", "amber"),
    "yellow": ("golden", "lemon"),
    "green": ("emerald", "jade"),
    "blue": ("azure", "cobalt"),
    "purple": ("violet", "lilac"),
    "pink": ("rose", "magenta"),
    "white": ("ivory", "pearl"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "dot"),
    "square": ("box", "block"),
    "triangle": ("pyramid", "wedge"),
    "star": ("starfish",),
    "ring": ("hoop", "donut"),
    "cross": ("plus", "plus sign"),
    "heart": ("love heart",),
    "moon": ("crescent",),
}
# Material -> (adjectives, phrases behind the noun); a plain one is not worth a word.
MATERIAL_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "glossy": (("glossy", "shiny"), ()),
    "striped": (("striped",), ("with stripes",)),
    "dotted": (("dotted", "spotted"), ("with dots",)),
    "checked": (("checked",), ("with checks",)),
    "rough": (("rough", "grainy"), ()),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "medium": (), "large": ("large", "big")}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("on a plain background", "in a studio"),
    "sand": ("on sand", "on the beach"),
    "grass": ("on grass", "on the lawn"),
    "sky": ("in the sky", "among clouds"),
    "wood": ("on wood", "on a wooden table"),
    "tiles": ("on tiles", "on a tiled floor"),
    "water": ("on water", "in a pool"),
    "night": ("at night", "under the stars"),
    "brick": ("on a brick wall", "on bricks"),
    "snow": ("on snow", "in the snow"),
}
# Where the second object is, seen from the main one -> phrases between the two, and phrases behind "with <second>".
POSITION_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("right of", "to the right of"), ("on its left",)),
    "right": (("left of", "to the left of"), ("on its right",)),
    "above": (("below", "under"), ("above it",)),
    "below": (("above", "over"), ("below it",)),
    "behind": (("in front of", "covering"), ("behind it",)),
}

CANONICAL = 0.9  # probability that a class word is not replaced by a synonym
MENTION = 0.2  # probability that an adjective, the second object or the background is mentioned


def describe(rng: Generator, factors: Mapping[str, str | int]) -> str:
    """One caption for a scene with these factor columns (see `vtp.data.scenes.FACTORS`), the main object first."""
    name = {key: str(value) for key, value in factors.items()}
    words = _object(rng, name["colour"], name["shape"], name["material"], name["size"])
    if name["second_position"] != "none" and rng.random() < MENTION:
        words = _joined(rng, words, _object(rng, name["second_colour"], name["second_shape"]), name["second_position"])
    place = _choice(rng, BACKGROUND_WORDS[name["background"]]) if rng.random() < MENTION else ""
    order = rng.random()
    if place and order < 0.2:
        return f"{place}, {words}"
    if order > 0.85:
        words = f"{_choice(rng, ('a picture of', 'there is', 'this is'))} {words}"
    return f"{words} {place}".rstrip()


def _object(rng: Generator, colour: str, shape: str, material: str = "plain", size: str = "medium") -> str:
    """A noun phrase with its article: "a large striped blue ring", "a blue striped ring", "a blue ring with stripes"."""
    colour_word = colour if rng.random() < CANONICAL else _choice(rng, COLOUR_WORDS[colour])
    shape_word = shape if rng.random() < CANONICAL else _choice(rng, SHAPE_WORDS[shape])
    before, behind = MATERIAL_WORDS[material]
    adjectives, tail = [colour_word], ""
    if before and rng.random() < MENTION:
        if behind and rng.random() < 0.3:
            tail = f" {_choice(rng, behind)}"
        else:
            adjectives.insert(0 if rng.random() < 0.7 else 1, _choice(rng, before))
    if SIZE_WORDS[size] and rng.random() < MENTION:
        adjectives.insert(0, _choice(rng, SIZE_WORDS[size]))
    phrase = f"{' '.join(adjectives)} {shape_word}{tail}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(rng: Generator, main: str, second: str, position: str) -> str:
    """Both objects and, mostly, where they are: "<main> left of <second>", "<main> with <second> on its right"."""
    between, behind = POSITION_WORDS[position]
    kind = rng.random()
    if kind < 0.6:
        return f"{main} {_choice(rng, between)} {second}"
    if kind < 0.85:
        return f"{main} with {second} {_choice(rng, behind)}"
    return f"{main} and {second}"


def _choice(rng: Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
