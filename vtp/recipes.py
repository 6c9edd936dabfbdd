"""Recipes: small override files that are applied onto params.yaml, whose comments and order stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vtp.artifacts import aside
from vtp.config import ROOT, no_yaml, parse, text_of
from vtp.typed import ConfigError, unknown

FOLDER = ROOT / "recipes"


def names() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def apply(name: str, overrides: tuple[str, ...] = (), file: Path = ROOT / "params.yaml") -> list[str]:
    """Write the values of recipe `name`, then `overrides` (`data.path=/here`), into `file`; return the keys that changed.

    A recipe may say `based_on: other`, which is applied first. The result is checked before the file is replaced.

    Raises:
        ConfigError: no such recipe, a key that params.yaml does not have, or values that do not pass the schema.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.width = 200  # a line that fits as we wrote it stays one
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.preserve_quotes = True
    try:
        tree = yaml.load(text_of(file))
    except YAMLError as error:
        raise no_yaml(file.name, error) from None
    changed = [key for values in chain(name) for key in put(values, tree, f"recipe {name}")]
    changed += [key for override in overrides for key in put(parsed(override), tree, override)]
    try:
        parse(tree)
    except ConfigError as error:
        if overrides:
            raise
        raise ConfigError(f"{error} Say it behind the recipe's name: `python -m vtp recipe {name} key=value`.") from None
    with aside(file) as temporary, temporary.open("w") as out:
        yaml.dump(tree, out)
    return changed


def put(values: Mapping[str, Any], tree: dict[str, Any], origin: str) -> list[str]:
    """Write the values of a partial tree into a whole one; the dotted keys of what changed.

    Raises:
        ConfigError: a key that the whole tree does not have; the message names `origin`.
    """
    changed = []
    for key, value in _leaves(values, tree, origin):
        *path, last = key.split(".")
        table = tree
        for part in path:
            table = table[part]
        if table.get(last) != value:
            table[last] = value
            changed.append(key)
    return changed


def chain(name: str) -> list[dict[str, Any]]:
    """The values of a recipe, after those of the recipes it is based on.

    Raises:
        ConfigError: no such recipe.
    """
    file = FOLDER / f"{name}.yaml"
    if not file.exists():
        raise ConfigError(f"there is no recipe {name}; recipes are {', '.join(names())}.")
    values = read_yaml(text_of(file), str(file))
    base = values.pop("based_on", None)
    return [*(chain(base) if base else []), values]


def read_yaml(text: str, origin: str) -> Any:
    """The table in `text`, read as params.yaml is: 1e-4 is a number, which PyYAML alone takes for a text.

    Raises:
        ConfigError: it is no YAML; the message names `origin`.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except YAMLError as error:
        raise no_yaml(origin, error) from None


def parsed(override: str) -> dict[str, Any]:
    """`key.part=value` as a partial tree.

    Raises:
        ConfigError: not of that form.
    """
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"{override} is not of the form key=value.")
    return nested(key, read_yaml(f"value: {value}", override)["value"])


def nested(key: str, value: Any) -> dict[str, Any]:
    """The partial tree that holds `value` at a dotted key, and nothing else."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _leaves(values: Mapping[str, Any], tree: Mapping[str, Any], origin: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in tree:
            raise ConfigError(f"{origin}: {unknown(path, tree)}")
        if isinstance(value, Mapping):
            if not isinstance(tree[key], Mapping):
                raise ConfigError(f"{origin}: {path} is one value, not a table of {', '.join(map(str, value))}.")
            yield from _leaves(value, tree[key], origin, f"{path}.")
        else:
            yield path, value
