"""The pieces of work, as parameters laid over params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtp.config import ROOT, Params, parse


def parameters(*names: str) -> Params:
    """params.yaml under the files of these names, in this order."""
    import yaml

    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in names:
        _lay(tree, _values(name))
    return parse(tree)


def _values(name: str) -> dict[str, Any]:
    import yaml

    values = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
    base = values.pop("based_on", None)
    if base:
        under = _values(base)
        _lay(under, values)
        return under
    return values


def _lay(tree: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and key in tree:
            _lay(tree[key], value)
        else:
            tree[key] = value
