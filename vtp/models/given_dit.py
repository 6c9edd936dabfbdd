"""Diffusion transformers from outside: used as they are, or trained on; and the one that the parameters describe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vtp.config import DitParams
from vtp.models import dit
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.models.lightningdit import open_dit

FILES = (*dit.FILES, "latents_stats.st", "latents_stats.pt")
"""What of a given folder is read."""

Shape = tuple[int, int, int]
"""Channels, height and width of latents."""


def options_of(params: DitParams, shape: Shape, num_classes: int) -> DitOptions:
    """The transformer that `dit` in params.yaml describes, for latents of this shape.

    Raises:
        ValueError: the grid is no square.
    """
    channels, height, width = shape
    if height != width:
        raise ValueError(f"latents of {height} x {width} positions are no square, which a diffusion transformer needs.")
    return DitOptions(
        latent_channels=channels,
        grid=height,
        patch=params.patch,
        width=params.width,
        depth=params.depth,
        heads=params.heads,
        mlp_ratio=params.mlp_ratio,
        num_classes=num_classes,
        qk_norm=params.qk_norm,
        swiglu=params.swiglu,
        rope=params.rope,
        rmsnorm=params.rmsnorm,
        shift=params.shift,
        learn_sigma=False,
    )


def as_it_is(path: Path, shape: Shape, num_classes: int) -> DiT:
    """The transformer in a folder or a LightningDiT checkpoint, for latents of this shape and as many classes.

    Raises:
        ValueError: it is for other latents or classes, or cannot be read.
    """
    model = open_dit(path)
    options = model.options
    theirs = (options.latent_channels, options.grid, options.grid)
    if theirs != shape or options.num_classes != num_classes:
        raise ValueError(
            f"{path} paints latents of {' x '.join(map(str, theirs))} in {options.num_classes} classes; this pipeline's are "
            f"{' x '.join(map(str, shape))} in {num_classes}. Give it the tokenizer, picture size and data it fits."
        )
    return model


def go_on_from(model: DiT, path: Path) -> None:
    """Give a new transformer the weights in a folder or a LightningDiT checkpoint of the same form.

    Raises:
        ValueError: naming everything that differs.
    """
    given = open_dit(path)
    ours, theirs = asdict(model.options), asdict(given.options)
    wrong = [f"{name} ({theirs[name]}, not {ours[name]})" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise ValueError(
            f"dit.init_from={path} has another form than the parameters ask for: {', '.join(wrong)}; set dit to its values."
        )
    model.load_state_dict(given.state_dict())
