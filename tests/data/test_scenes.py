"""Scenes: reproducible at any order and size, with the main object in full view and captions that name it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vtp.data import scene_shapes, scenes
from vtp.data.scene_grammar import COLOUR_WORDS, POSITION_WORDS, SHAPE_WORDS, describe
from vtp.data.scenes import CLASSES, COLOURS, FACTORS, SHAPES, label_of, plan, render


def plans(count: int) -> list[scenes.Plan]:
    return [plan(np.random.default_rng(i), i % len(CLASSES)) for i in range(count)]


def mask(item: scene_shapes.Item, size: int = 128) -> np.ndarray:
    return item.distance(*scene_shapes.grid(size)) < 0


def test_a_scene_depends_on_its_key_only():
    forwards = [render(3, "train", i, 32) for i in range(6)]
    backwards = [render(3, "train", i, 32) for i in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert np.array_equal(one.picture, other.picture)
        assert (one.caption, one.label, one.factors) == (other.caption, other.label, other.factors)


@pytest.mark.parametrize("key", [(4, "train", 2), (3, "validation", 2), (3, "train", 3)])
def test_seed_split_and_index_all_matter(key):
    difference = render(*key, 32).picture.astype(int) - render(3, "train", 2, 32).picture
    assert np.abs(difference).mean() > 5


def test_splits_share_no_scene():
    keys = {split: {render(0, split, i, 16).picture.tobytes() for i in range(128)} for split in ("train", "validation")}
    assert len(keys["train"]) == len(keys["validation"]) == 128
    assert not keys["train"] & keys["validation"]


def test_pictures_are_uint8_of_the_size_asked_for():
    for size in (16, 48, 100):
        picture = render(0, "train", 7, size).picture
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous


def test_the_content_does_not_depend_on_the_resolution():
    for index in range(24):
        small, large = (render(0, "train", index, size) for size in (64, 128))
        assert (small.caption, small.label, small.factors) == (large.caption, large.label, large.factors)
        halved = large.picture.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - small.picture).mean() < 4  # of 255: edges and the finest grain only


def test_labels_are_balanced_and_in_random_order():
    labels = np.array([label_of(0, "train", i) for i in range(640)])
    assert (np.bincount(labels, minlength=64) == 10).all()
    assert all(len(set(block)) == 64 for block in labels.reshape(10, 64))
    assert len({tuple(block) for block in labels.reshape(10, 64)}) == 10
    assert abs(np.corrcoef(labels, np.arange(640))[0, 1]) < 0.15
    assert (labels != [label_of(0, "validation", i) for i in range(640)]).mean() > 0.9


def test_a_label_is_colour_times_shape():
    assert len(COLOURS) == len(SHAPES) == 8
    assert len(CLASSES) == len({name for name, _ in CLASSES}) == 64
    for index in range(64):
        scene = render(0, "train", index, 16)
        name, factors = CLASSES[scene.label]
        assert name == f"{scene.factors['colour']} {scene.factors['shape']}"
        assert factors == {key: scene.factors[key] for key in ("colour", "shape")}
        assert scene.label == COLOURS.index(factors["colour"]) * 8 + SHAPES.index(factors["shape"])


def test_factors_are_columns_with_known_values():
    for index in range(200):
        factors = render(0, "train", index, 8).factors
        assert list(factors) == list(FACTORS)
        assert all(value in FACTORS[key] for key, value in factors.items())
        present = [factors[f"{place}_colour"] != "none" for place in ("second", "third")]
        assert factors["num_objects"] == 1 + sum(present)
        assert present == sorted(present, reverse=True)
        assert (factors["second_position"] != "none") == present[0]
        assert len({factors["colour"], factors["second_colour"], factors["third_colour"]}) >= factors["num_objects"]


def test_the_main_object_covers_20_to_50_percent_and_lies_inside():
    for scene in plans(320):
        inside = mask(scene.items[0])
        assert 0.2 <= inside.mean() <= 0.5, scene.items[0]
        assert inside[1:-1, 1:-1].sum() == inside.sum()


def test_the_other_objects_are_smaller_and_can_be_seen():
    for scene in plans(320):
        main, *others = (mask(item) for item in scene.items)
        for other in others:
            assert other.sum() < 0.75 * main.sum()
        if others:
            assert (others[0] & ~main).sum() > 0.4 * others[0].sum()


def test_nothing_is_painted_over_the_main_object():
    """With the others or without, its pixels differ by no more than the random tint of a plain material."""
    for scene in plans(96):
        main = replace(scene.items[0], material="plain")
        core = main.distance(*scene_shapes.grid(64)) < -0.03
        company, alone = (
            scenes.draw(np.random.default_rng(0), replace(scene, items=items), 64)[core].astype(int)
            for items in ((main, *scene.items[1:]), (main,))
        )
        assert np.abs(company - alone).max() < 25
        assert main.colour not in [item.colour for item in scene.items[1:]]


def test_the_second_object_is_where_its_column_says():
    seen = set()
    for scene in plans(640):
        if scene.second_position == "none":
            continue
        main, second = scene.items[:2]
        right, down = second.x - main.x, second.y - main.y
        expected = {"left": -right, "right": right, "above": -down, "below": down}
        if scene.second_position == "behind":
            assert (mask(main) & mask(second)).any()
        else:
            assert max(expected, key=lambda side: expected[side]) == scene.second_position
        seen.add(scene.second_position)
    assert seen == set(POSITION_WORDS)


def test_every_class_word_has_its_own_synonyms():
    for words in (COLOUR_WORDS, SHAPE_WORDS):
        every = [word for name, synonyms in words.items() for word in (name, *synonyms)]
        assert len(every) == len(set(every))


def test_captions_name_the_main_object_first_and_mostly_by_its_class_name():
    canonical = 0
    rounds = 1500
    for index in range(rounds):
        rng = np.random.default_rng(index)
        factors = plan(rng, index % 64).factors()
        caption = describe(rng, factors)
        words = f" {caption} ".replace(",", " ,")
        assert caption == caption.lower()
        assert len(caption.split()) <= 21
        first = {}
        for key, table in (("colour", COLOUR_WORDS), ("shape", SHAPE_WORDS)):
            places = {
                name: min(words.find(f" {word} ") % 10**6 for word in (name, *synonyms)) for name, synonyms in table.items()
            }
            first[key] = min(places, key=lambda name: places[name])
            assert places[first[key]] < len(words)
        assert first == {"colour": factors["colour"], "shape": factors["shape"]}, caption
        canonical += f" {factors['colour']} " in words and f" {factors['shape']} " in words
    assert 0.75 < canonical / rounds < 0.95


def test_articles_fit_the_word_that_follows():
    for index in range(300):
        rng = np.random.default_rng(index)
        words = describe(rng, plan(rng, index % 64).factors()).split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou")


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_metric_near_the_outline(shape):
    item = scene_shapes.Item(shape, "red", "plain", 0.7, 0.05, -0.03, 0.2)
    distance = item.distance(*scene_shapes.grid(256))
    down, right = np.gradient(distance, 2 / 256)
    slope = np.hypot(right, down)[np.abs(distance) < 0.02]
    assert np.median(slope) == pytest.approx(1, abs=0.02)
    assert slope.max() < 1.05


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_keep_apart_under_light(colour):
    """The mean of every plain object is nearest to its own colour, the palette's brightness being taken out."""
    palette = np.array([scene_shapes.PALETTE[name][0] for name in COLOURS])
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    for turn in range(6):
        item = scene_shapes.Item("circle", colour, "plain", 0.7, 0, 0, 0)
        picture = np.full((3, 48, 48), 0.5, np.float32)
        light = (0.7 * np.cos(turn), 0.7 * np.sin(turn), 0.51**0.5)
        scene_shapes.paint(picture, item, light, np.random.default_rng(turn))
        seen = picture[:, item.distance(*scene_shapes.grid(48)) < -0.05].mean(1)
        assert COLOURS[int((palette @ seen).argmax())] == colour
