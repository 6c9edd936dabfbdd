"""`python -m vtp`: what a user does beside `dvc`."""

from __future__ import annotations

import json
import sys

import click

from vtp.config import ROOT, ConfigError, load


@click.group(help="Open VTP: helpers beside `dvc repro` and `dvc exp run`.")
def main() -> None:
    """The group of commands."""


@main.command()
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1)
def recipe(name: str | None, overrides: tuple[str, ...]) -> None:
    """Apply a recipe, and overrides (key=value), onto params.yaml, comments kept; without NAME, list what there is."""
    from vtp import recipes

    if name is None:
        click.echo("\n".join(recipes.names()))
        return
    changed = recipes.apply(name, overrides)
    click.echo(f"recipe {name}: {len(changed)} values changed; `git diff params.yaml` shows them.")


@main.command()
@click.argument("overrides", nargs=-1)
def pin(overrides: tuple[str, ...]) -> None:
    """Pin the outside data of data.source and data.path under data/inputs/ (files, sizes, checksums)."""
    from vtp.data import pins

    click.echo(f"wrote {pins.write_pin(load(list(overrides)).data, ROOT / 'data' / 'inputs')}")


@main.command()
def results() -> None:
    """Print the table of results and where the pictures are."""
    from vtp.reporting.summary import console_table

    file = ROOT / "reports" / "summary.json"
    if not file.exists():
        raise ConfigError(f"{file} is missing; `dvc repro` makes it.")
    click.echo(console_table(json.loads(file.read_text())))
    for path in [ROOT / "reports" / "index.html", *sorted((ROOT / "reports" / "pictures").glob("*.png"))]:
        click.echo(str(path))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"vtp: {error}")
