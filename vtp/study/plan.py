"""The plan of a study: a YAML file that names what is varied and what is fixed, expanded into cells and checked before any runs.

about: what the study asks, a sentence or two for its report
recipe: gpu-64                      # what every cell starts from, applied onto the recipe demo
set: {dit.steps: 4000}              # further values, dotted keys
grid:                               # a product of lists, or a list of products; what a product does not name stays as set
  objective: [ae, clip+ssl+ae]
  pretrain_steps: [500, 1500, 5000]
teacher: {objective: ssl+ae}        # trained first, for the recipes vavae and frozen; or the folder of a tokenizer
"""

from __future__ import annotations

import itertools
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtp import recipes
from vtp.config import ConfigError, PretrainParams, parse
from vtp.provenance import fingerprint, what_parameters

Tree = dict[str, Any]
"""All of params.yaml as nested tables."""

KEYS = ("about", "recipe", "set", "grid", "teacher")
OBJECTIVES: tuple[str, ...] = typing.get_args(typing.get_type_hints(PretrainParams)["objective"])
NUMBERS = {
    "pretrain_steps": ("pretrain.steps", ""),
    "data_fraction": ("pretrain.data_fraction", "data-"),
    "dit_steps": ("dit.steps", "dit-"),
    "seed": ("seed", "seed-"),
}
"""Axes that are one parameter each: its key, and what its value is called by in a cell's name."""
PARTS = ("encoder", "decoder")
"""Axes that name a row of `model.sizes`, of which one part is taken; the rest stays that of `model.size`."""
TEACHER = "/the/teacher/of/this/study"
"""Stands in a cell's parameters for the folder of a teacher that the study trains itself."""
AXES = ("objective", *NUMBERS, *PARTS)
LENGTHS = ("pretrain_steps", "dit_steps")
"""Axes along which trainings share their beginning."""


@dataclass(frozen=True)
class Cell:
    """One variant.

    Attributes:
        name: short and unique in the study; a file name, and part of the name of a DVC experiment.
        axes: where it stands: a value for each of AXES.
        tree: all of its parameters.
        key: fingerprint of what can change its results; where outside files lie is no part of it.
    """

    name: str
    axes: Mapping[str, Any]
    tree: Tree
    key: str

    @property
    def taught(self) -> bool:
        """Whether it needs the teacher that the study trains itself."""
        return json.dumps(TEACHER) in json.dumps(self.tree["pretrain"])

    @property
    def training(self) -> tuple[Any, ...]:
        """Equal for cells that begin with the same work: they differ in lengths only, or have the study's teacher in common."""
        return ("taught",) if self.taught else tuple(value for axis, value in self.axes.items() if axis not in LENGTHS)


@dataclass(frozen=True)
class Study:
    """A plan, expanded. Its name is the stem of its file.

    Attributes:
        teacher: pre-trained first, and then held up to the cells whose parameters say TEACHER; None where there is no such cell.
    """

    name: str
    about: str
    cells: tuple[Cell, ...]
    teacher: Cell | None


def read(file: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Study:
    """The study that `file` plans, with overrides (`data.path=/here`) for every cell.

    Args:
        only: keep the cells of these objectives; empty keeps all.

    Raises:
        ConfigError: an unknown key, a value that does not pass the schema, or a cell that cannot be; before anything runs.
    """
    if not file.exists():
        raise ConfigError(f"{file} does not exist; a study is a YAML file, see studies/.")
    plan = recipes.read_yaml(recipes.text_of(file), str(file))
    if not isinstance(plan, dict) or "grid" not in plan:
        raise ConfigError(f"{file} has no grid, a table of what is varied.")
    if unknown := sorted(set(plan) - set(KEYS)):
        raise ConfigError(f"{file}: a study has the keys {', '.join(KEYS)}; look at {', '.join(unknown)}.")
    if not isinstance(plan.get("set") or {}, dict):
        raise ConfigError(f"{file}: set must be a table of parameters and their values.")
    base = _base(file, plan, overrides)
    products = plan["grid"] if isinstance(plan["grid"], list) else [plan["grid"]]
    named, trained = plan.get("teacher"), None
    if isinstance(named, dict):
        trained = _cell(base, next(_expand(file, {axis: [value] for axis, value in named.items()})))
    cells: dict[str, Cell] = {}
    for point in itertools.chain.from_iterable(_expand(file, product) for product in products):
        cell = _cell(base, point, TEACHER if trained else named, trained)
        cells.setdefault(cell.name, cell)
    there = {cell.axes["objective"] for cell in cells.values()}
    if not there.issuperset(only):
        raise ConfigError(f"{file} has no objective {', '.join({*only} - there)}; it has {', '.join(sorted(there))}.")
    kept = tuple(cell for cell in cells.values() if not only or cell.axes["objective"] in only)
    return Study(file.stem, " ".join(str(plan.get("about", "")).split()), kept, trained)


def _base(file: Path, plan: Mapping[str, Any], overrides: Sequence[str]) -> Tree:
    """What every cell starts from: the recipe demo, which holds every parameter, and what the plan puts onto it."""
    tree: Tree = {}
    for values in recipes.chain("demo"):
        tree |= deepcopy(values)
    for values in recipes.chain(plan["recipe"]) if plan.get("recipe") else ():
        recipes.put(values, tree, f"recipe {plan['recipe']}")
    for key, value in (plan.get("set") or {}).items():
        recipes.put(recipes.nested(key, value), tree, f"{file}: set")
    for override in overrides:
        recipes.put(recipes.parsed(override), tree, override)
    tree["sample"]["unguided"] = tree["sample"]["guidance_scale"] != 1
    parse(tree)
    return tree


def _expand(file: Path, product: Any) -> Iterator[dict[str, Any]]:
    """The points of one product, the last axis moving fastest."""
    if not isinstance(product, dict) or not product:
        raise ConfigError(f"{file}: grid must be a table of lists, or a list of such tables.")
    for axis, values in product.items():
        if axis not in AXES:
            raise ConfigError(f"{file}: grid.{axis} is not an axis; axes are {', '.join(AXES)}.")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{file}: grid.{axis} must be a list of values, not {values!r}.")
    for point in itertools.product(*product.values()):
        yield dict(zip(product, point, strict=True))


def _cell(base: Tree, point: Mapping[str, Any], folder: str | None = None, trained: Cell | None = None) -> Cell:
    """The cell at a point; axes that the point does not name are where `base` has them.

    Args:
        folder: of the teacher, for a cell that needs one and has none.
        trained: that teacher, if the study trains it.

    Raises:
        ConfigError: it cannot be.
    """
    tree = deepcopy(base)
    axes: dict[str, Any] = {"objective": point.get("objective", base["pretrain"]["objective"])}
    try:
        _put_objective(tree, axes["objective"])
        taught = _put_teacher(tree, folder)
        for axis, (key, _) in NUMBERS.items():
            if axis in point:
                recipes.put(recipes.nested(key, point[axis]), tree, f"grid.{axis}")
        for part in PARTS:
            if part in point:
                _put_part(tree, part, point[part])
        params = parse(tree)
        cooldown = params.pretrain.optimizer.cooldown
        if params.pretrain.steps <= cooldown:
            raise ConfigError(f"pretrain.steps={params.pretrain.steps} is no longer than its cool-down of {cooldown} steps.")
    except ConfigError as error:
        raise ConfigError(
            f"the cell {', '.join(f'{axis}={value}' for axis, value in point.items())} cannot be: {error}"
        ) from None
    axes |= {axis: _get(tree, key) for axis, (key, _) in NUMBERS.items()}
    axes |= {part: point.get(part, base["model"]["size"]) for part in PARTS}
    what = what_parameters(params)
    what["data"]["path"] = None
    if taught and trained:
        what["teacher"] = trained.key
    return Cell(_name(axes, base), axes, tree, fingerprint(what))


def _name(axes: Mapping[str, Any], base: Tree) -> str:
    """Objective and steps always, another axis where it is not what the study has set."""
    words = [axes["objective"], str(axes["pretrain_steps"])]
    words += [f"{word}{axes[axis]}" for axis, (key, word) in NUMBERS.items() if word and axes[axis] != _get(base, key)]
    words += [f"{part}-{axes[part]}" for part in PARTS if axes[part] != base["model"]["size"]]
    return "_".join(words)


def _put_objective(tree: Tree, value: Any) -> None:
    """One of the joint objectives, or a recipe that makes another kind of tokenizer."""
    if value in OBJECTIVES:
        tree["pretrain"]["objective"] = value
        return
    if value not in recipes.names():
        raise ConfigError(f"objective={value} is neither one of {', '.join(OBJECTIVES)} nor a recipe.")
    for values in recipes.chain(value):
        recipes.put(values, tree, f"recipe {value}")


def _put_teacher(tree: Tree, folder: str | None) -> bool:
    """Name the teacher where one is needed and none is named; whether it is this one."""
    pretrain = tree["pretrain"]
    if "align" in pretrain["objective"] and pretrain["align"]["teacher"] is None:
        pretrain["align"]["teacher"] = folder
        return True
    if pretrain["frozen"] and pretrain["init_from"] is None:
        pretrain["init_from"] = folder
        return True
    return False


def _put_part(tree: Tree, part: str, row: Any) -> None:
    if tree["tokenizer"]["network"] == "convolutional":
        raise ConfigError(
            f"{part}={row} is a size of transformers, and tokenizer.network=convolutional; give it a grid of its own."
        )
    ladder = tree["model"]["sizes"]
    if row not in ladder:
        raise ConfigError(f"{part}={row} is no row of model.sizes, which has {', '.join(ladder)}.")
    ladder[tree["model"]["size"]][part] = deepcopy(ladder[row][part])


def _get(tree: Tree, key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
