"""Where tokenizer, latents and diffusion transformer come from: made here, or given from outside by a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vtp.typed import ConfigError

if TYPE_CHECKING:
    from vtp.config import Params

PRETRAINED = "pretrained:"
"""What `tokenizer.source`, `latents.source` and `dit.source` begin with where they name a path."""

TIMM = "timm:"
"""What `pretrain.align.teacher` begins with where it names a model of timm, and no folder."""


def folder_of(teacher: str | None) -> str | None:
    """The folder that a teacher is; None for one of timm, and without one."""
    return None if teacher is None or teacher.startswith(TIMM) else teacher


def given(source: str, ours: str, start: str | None) -> Path | None:
    """The path that is used as it is (`source`) or gone on from (`start`); None where nothing comes from outside.

    Args:
        ours: the source that names no path.
    """
    return Path(source.removeprefix(PRETRAINED)) if source != ours else Path(start) if start else None


def check_origins(p: Params) -> None:
    """Where tokenizer, latents and diffusion transformer come from."""
    begin = "pretrain.init_from" if p.pretrain.align.teacher is None else "pretrain.align.teacher"
    for what, source, ours, start_key, start, given in (
        ("tokenizer", p.tokenizer.source, "train", begin, p.pretrain.init_from, p.given_tokenizer),
        ("latents", p.latents.source, "extract", None, None, p.given_latents),
        ("dit", p.dit.source, "train", "dit.init_from", p.dit.init_from, p.given_dit),
    ):
        if source != ours and not source.startswith(PRETRAINED):
            raise ConfigError(f"{what}.source={source} must be {ours} or {PRETRAINED}/absolute/path.")
        if source != ours and start is not None:
            raise ConfigError(f"{what}.source and {start_key} both name a {what}; nothing is trained on the first.")
        if given is not None and not given.is_absolute():
            key = start_key if source == ours else f"{what}.source"
            raise ConfigError(f"{key}={given} must be absolute, or a copy of the checkout would not find it.")


def check_network(p: Params) -> None:
    """That a convolutional tokenizer, and no other, is trained to reconstruct under a KL term; a given one is not trained."""
    if p.tokenizer.source != "train":
        return
    network, objective = p.tokenizer.network, p.pretrain.objective
    if network == "convolutional" and objective != "ae+kl":
        raise ConfigError(
            f"pretrain.objective={objective} needs the transformers' class token, text tower or bottleneck, which "
            f"tokenizer.network=convolutional has not; use ae+kl."
        )
    if network != "convolutional" and objective == "ae+kl":
        raise ConfigError(
            f"pretrain.objective=ae+kl needs a latent that is a distribution, which tokenizer.network={network} has not; "
            "use convolutional (the recipe kl-vae)."
        )
    if network == "convolutional" and p.tokenizer.patch & (p.tokenizer.patch - 1):
        raise ConfigError(
            f"tokenizer.patch={p.tokenizer.patch} is not a power of two; tokenizer.network=convolutional halves pictures."
        )
    if network == "convolutional" and p.pretrain.drop_path:
        raise ConfigError(f"pretrain.drop_path={p.pretrain.drop_path} drops blocks of transformers; set it to 0.0.")


def check_baselines(p: Params) -> None:
    """That a teacher is there where, and only where, latents are held close to one; and a trunk where it stays frozen."""
    aligned, teacher = "align" in p.pretrain.objective, p.pretrain.align.teacher
    if aligned != (teacher is not None):
        needs = "needs a teacher, the folder of a tokenizer or timm:<name>" if aligned else "has no use for one; set it to null"
        raise ConfigError(f"pretrain.align.teacher={teacher or 'null'}: pretrain.objective={p.pretrain.objective} {needs}.")
    if teacher is not None and p.pretrain.init_from is not None:
        raise ConfigError("pretrain.init_from and pretrain.align.teacher both name a tokenizer; one at a time can be pinned.")
    if p.pretrain.frozen and (p.pretrain.init_from is None or p.pretrain.objective != "ae"):
        raise ConfigError("pretrain.frozen=true needs pretrain.init_from, whose trunk it keeps, and pretrain.objective=ae.")
    if p.pretrain.latent_noise and not p.pretrain.frozen:
        raise ConfigError(f"pretrain.latent_noise={p.pretrain.latent_noise} is for pretrain.frozen=true; set it to 0.")
    if p.pretrain.drop_path and p.pretrain.frozen:
        raise ConfigError(f"pretrain.drop_path={p.pretrain.drop_path} is for trunks that learn; pretrain.frozen=true needs 0.")


def check_patches(p: Params) -> None:
    """That pictures divide into the patches of a tokenizer trained here; a given one says for itself."""
    if p.tokenizer.source != "train":
        return
    views, patch = p.pretrain.views, p.tokenizer.patch
    for key, pixels in (
        ("data.image_size", p.data.image_size),
        ("pretrain.views.global_size", views.global_size),
        ("pretrain.views.local_size", views.local_size),
    ):
        if pixels % patch:
            raise ConfigError(f"{key}={pixels} is not a multiple of tokenizer.patch={patch}.")
    grid = p.data.image_size // patch
    if p.dit.source == "train" and grid % p.dit.patch:
        raise ConfigError(f"dit.patch={p.dit.patch} does not divide the latent grid of {grid} x {grid}.")
