"""`python -m vtp`: what a user does beside `dvc`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtp.artifacts import load_json, meant
from vtp.config import ROOT, ConfigError, load
from vtp.study.commands import study

if TYPE_CHECKING:
    from vtp.data.shards import ClassInfo


@click.group(help="Open VTP: helpers beside `dvc repro` and `dvc exp run`.")
def main() -> None:
    """The group of commands."""


main.add_command(study)


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
    """Pin what comes from outside (files, sizes, checksums) under data/inputs/: pictures, tokenizer, latents, transformer."""
    from vtp.data import pins, source_pins
    from vtp.models import given_dit, kinds

    params, inputs = load(list(overrides)), ROOT / "data" / "inputs"
    click.echo(f"wrote {source_pins.write_pin(params.data, inputs)}")
    click.echo(f"wrote {pins.write_given_pin('tokenizer', params.given_tokenizer, kinds.FILES, inputs)}")
    click.echo(f"wrote {pins.write_given_pin('latents', params.given_latents, None, inputs)}")
    click.echo(f"wrote {pins.write_given_pin('dit', params.given_dit, given_dit.FILES, inputs)}")


@main.command()
@click.option("--rows", type=click.IntRange(min=0), default=20, show_default=True, help="Rows to print below the counts.")
def quarantine(rows: int) -> None:
    """Print what `prepare` put aside: how many rows for which reason, and the first of them."""
    from vtp.data.prepare import quarantined

    counts, first = quarantined(ROOT / "data" / "prepare", rows)
    lines = [f"{count:>8}  {split:<10}  {reason}" for (split, reason), count in counts.items()]
    click.echo("\n".join(lines) or "nothing was put aside")
    for row in first:
        click.echo(f"{row['split']}  {row['file'] or ''}  {row['key'] or ''}: {row['reason']}")


@main.command()
def results() -> None:
    """Print the table of results and where the pictures are."""
    from vtp.reporting.summary import console_table

    file = ROOT / "reports" / "summary.json"
    if not file.exists():
        raise ConfigError(f"{file} is missing; `dvc repro` makes it.")
    click.echo(console_table(load_json(file)))
    for path in [ROOT / "reports" / "index.html", *sorted((ROOT / "reports" / "pictures").glob("*.png"))]:
        click.echo(str(path))


TOKENIZER = str(ROOT / "data" / "finetune_decoder")
PICTURES = click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
FOLDER = click.option(
    "--tokenizer",
    "folder",
    default=TOKENIZER,
    show_default="data/finetune_decoder",
    help="Folder in the published layout, or diffusers' of an AutoencoderKL.",
)
HUB = click.option("--hub", is_flag=True, help="It is a name on the Hugging Face Hub, org/name; fetched if it is not there yet.")
OUT = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="PNG to write.")


@main.command()
@click.argument("folder", default=TOKENIZER)
@HUB
def inspect(folder: str, hub: bool) -> None:
    """Show what is in a folder or a LightningDiT checkpoint: a tokenizer's or diffusion transformer's sizes and options."""
    from vtp import use
    from vtp.models.hub import fetch

    facts = use.inside(fetch(folder) if hub else _there(folder))
    width = max(map(len, facts))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


@main.command()
@PICTURES
@FOLDER
@HUB
@OUT
@click.option("--size", type=click.IntRange(min=1), help="Side of the square in pixels; default: as in training.")
def reconstruct(images: tuple[Path, ...], folder: str, hub: bool, out: Path | None, size: int | None) -> None:
    """Encode and decode pictures: originals above reconstructions, and the PSNR of each."""
    from vtp import use
    from vtp.models.kinds import open_tokenizer
    from vtp.reporting.pictures import labelled_rows, save_png

    tokenizer = open_tokenizer(folder if hub else _there(folder), hub=hub)
    pixels = use.read_pictures(images, size or tokenizer.image_size)
    back, ratios = use.reconstructed(tokenizer, pixels)
    for file, ratio in zip(images, ratios.tolist(), strict=True):
        click.echo(f"{file}  {ratio:.2f} dB")
    out = out or Path("reconstructions.png")
    save_png(out, labelled_rows([("originals", pixels), ("reconstructions", back)]))
    click.echo(f"wrote {out}")


@main.command()
@PICTURES
@FOLDER
@HUB
@click.option("--labels", help="Names to choose from, separated by commas; default: the classes of the data prepared here.")
def classify(images: tuple[Path, ...], folder: str, hub: bool, labels: str | None) -> None:
    """Say which of some names fits each picture best, by the text tower, with no training (zero-shot)."""
    from vtp import use
    from vtp.models.kinds import open_tokenizer

    tokenizer = open_tokenizer(folder if hub else _there(folder), hub=hub)
    if labels is None:
        names = [entry.name for entry in _classes("name what to choose from with --labels a,b,c")]
    else:
        names = [label.strip() for label in labels.split(",") if label.strip()]
    if not names:
        raise ConfigError(f"--labels={labels!r} names nothing; separate names by commas.")
    pixels = use.read_pictures(images, tokenizer.image_size)
    shares = use.classified(tokenizer, pixels, names, load().evaluate.templates)
    for file, row in zip(images, shares, strict=True):
        best = sorted(zip(row.tolist(), names, strict=True), reverse=True)
        click.echo(f"{file}  " + ", ".join(f"{name} {share:.2f}" for share, name in best[:5]))


@main.command()
@click.option("--label", help="Name or number of a class; default: a picture each of classes spread over all there are.")
@click.option("--count", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@OUT
def generate(label: str | None, count: int, seed: int, out: Path | None) -> None:
    """Draw pictures of classes with the diffusion transformer trained here; how, is `sample` in params.yaml."""
    from vtp import use
    from vtp.reporting.pictures import captioned, save_png

    classes = _classes("the diffusion transformer was trained on its classes")
    step = max(1, len(classes) // count)  # not the same place of every stretch: classes may be sorted by what they share
    spread = [(i * len(classes) // count + i % step) % len(classes) for i in range(count)]
    numbers = spread if label is None else [use.class_number(label, classes)] * count
    pictures = use.generated(ROOT / "data", numbers, load().sample, seed)
    out = out or Path("generated.png")
    save_png(out, captioned(pictures, [classes[number].name for number in numbers], 8))
    click.echo(f"wrote {out}")


def _there(folder: str) -> Path:
    """A tokenizer's folder; the default one only if the pipeline has made it."""
    if folder == TOKENIZER and not Path(folder).exists():
        raise ConfigError(f"{folder} is missing; `dvc repro finetune_decoder` makes it, or name the folder of a tokenizer.")
    return Path(folder)


def _classes(why: str) -> list[ClassInfo]:
    """The classes of the data prepared here."""
    from vtp.data.shards import ClassInfo

    file = ROOT / "data" / "prepare" / "classes.json"
    if not file.is_file():
        raise ConfigError(f"{file} is missing; `dvc repro prepare` makes it ({why}).")
    return [ClassInfo(**entry) for entry in load_json(file)]


@main.command(name="export-tokenizer")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
def export_tokenizer(out: Path) -> None:
    """Write the tokenizer trained here as a folder to give away: the published layout, and a card of what was measured."""
    from vtp import use
    from vtp.artifacts import read_manifest
    from vtp.models.card import Card
    from vtp.models.kinds import open_tokenizer

    folder = ROOT / "data" / "finetune_decoder"
    given = read_manifest(folder, verify=False)["given"]
    card = Card.of_pipeline(given, "held-out pictures", use.measured(ROOT / "data", ROOT / "reports"))
    open_tokenizer(folder).save_pretrained(out, card)
    click.echo(f"wrote {out}")


@main.command(name="import-dit")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--statistics", type=click.Path(path_type=Path), help="latents_stats.pt of the latents it was trained on.")
@click.option("--heads", type=click.IntRange(min=1), help="Of the attention, where the file does not tell.")
def import_dit(checkpoint: Path, out: Path, statistics: Path | None, heads: int | None) -> None:
    """Bring a LightningDiT checkpoint (.pt) into this project's format; it is read as tensors, nothing in it is run."""
    from vtp.artifacts import folder_aside
    from vtp.data.latents import load_statistics, save_statistics
    from vtp.models.lightningdit import load_checkpoint, size_name

    model = load_checkpoint(checkpoint, heads)
    found = load_statistics(statistics) if statistics else None
    if found and found[0].shape[1] != model.options.latent_channels:
        raise ConfigError(f"{statistics} is for {found[0].shape[1]} channels, {checkpoint} for {model.options.latent_channels}.")
    if out.exists():
        raise ConfigError(f"{out} exists; name a folder that does not.")
    with folder_aside(out) as folder:
        model.save_pretrained(folder)
        if found:
            save_statistics(folder, *found)
    options = model.options
    size = f"{size_name(options) or 'of a size of its own'}, {options.num_classes} classes, {options.heads} heads"
    click.echo(f"wrote {out}: {size}, {options.latent_channels} x {options.grid} x {options.grid} latents")
    if not found:
        click.echo("without --statistics it will be sampled with the statistics of the latents of this pipeline")


@main.command(name="export-dit")
@click.argument("folder", type=click.Path(path_type=Path), default=ROOT / "data" / "train_dit")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Checkpoint (.pt) to write.")
def export_dit(folder: Path, out: Path) -> None:
    """Write a diffusion transformer as a checkpoint that LightningDiT's scripts load, and say how to build it there."""
    from vtp.models.dit import DiT
    from vtp.models.lightningdit import constructor_arguments, save_checkpoint

    model = DiT.from_pretrained(folder)
    save_checkpoint(model, out)
    click.echo(f"wrote {out}; LightningDiT({', '.join(f'{k}={v}' for k, v in constructor_arguments(model.options).items())})")


def command() -> None:
    """The program `vtp`. What the user can mend is one line; exit status 1."""
    try:
        main()
    except ValueError as error:
        sys.exit(f"vtp: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"vtp: {meant(error.filename)}: {error.strerror}; mend this, or name another place.")


if __name__ == "__main__":
    command()
