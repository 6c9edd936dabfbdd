"""What no single key of params.yaml can say: which values go together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vtp.config_data import check_data, check_templates
from vtp.origins import check_baselines, check_network, check_origins, check_patches
from vtp.typed import ConfigError

if TYPE_CHECKING:
    from vtp.config import Params, TransformerSize


def check(p: Params) -> None:
    """Hold the keys of all parameters against each other.

    Raises:
        ConfigError: naming the keys that do not go together.
    """
    if p.model.size not in p.model.sizes:
        raise ConfigError(f"model.size={p.model.size} is not known; model.sizes has {', '.join(p.model.sizes)}.")
    for name in ("encoder", "decoder", "text"):
        part: TransformerSize = getattr(p.sizes, name)
        key = f"model.sizes.{p.model.size}.{name}"
        step = part.heads if name == "text" else 4 * part.heads
        if part.width % step:
            raise ConfigError(f"{key}.width={part.width} does not divide by {step}, as heads={part.heads} needs.")
    step = 4 * p.dit.heads if p.dit.rope else math.lcm(4, p.dit.heads)
    if p.dit.width % step:
        raise ConfigError(f"dit.width={p.dit.width} does not divide by {step}, as dit.heads={p.dit.heads} needs.")
    check_network(p)
    check_baselines(p)
    check_origins(p)
    check_patches(p)
    for key in ("ssl_batch", "reconstruction_batch"):
        part_batch = getattr(p.pretrain, key)
        if p.pretrain.batch % part_batch:
            raise ConfigError(f"pretrain.{key}={part_batch} does not divide pretrain.batch={p.pretrain.batch}; use a divisor.")
    check_data(p.data)
    check_templates("evaluate.templates", p.evaluate.templates)
    if not p.evaluate.templates:
        raise ConfigError('evaluate.templates is empty; ["{}"] asks for the class names alone.')
    if p.pretrain.share_clip_view and "clip" not in p.pretrain.objective:
        raise ConfigError(f"pretrain.share_clip_view=true needs a clip view; pretrain.objective={p.pretrain.objective} has none.")
    for key, (low, high) in (
        ("pretrain.ssl.mask_ratio", p.pretrain.ssl.mask_ratio),
        ("sample.guidance_interval", p.sample.guidance_interval),
    ):
        if low > high:
            raise ConfigError(f"{key}=[{low}, {high}] must rise.")
    _check_schedules(p)
    for key, needed in (
        ("pretrain.weights", {"clip", "dino", "ibot", "koleo", "l1", "lpips", "kl"}),
        ("finetune_decoder.weights", {"l1", "lpips", "adversarial", "lecam"}),
        ("dit.weights", {"velocity", "cosine"}),
    ):
        section, _ = key.split(".")
        given = set(getattr(p, section).weights)
        if given != needed:
            odd = ", ".join(sorted(given ^ needed))
            raise ConfigError(f"{key} must name exactly {', '.join(sorted(needed))}; look at {odd}.")


def _check_schedules(p: Params) -> None:
    """That averages do not run away, temperatures divide, and a decoder follows nobody who has not begun to learn."""
    momentum, temperature = p.pretrain.ssl.teacher_momentum, p.pretrain.ssl.teacher_temperature
    if not 0 <= momentum.start <= 1 or not 0 <= momentum.end <= 1:
        raise ConfigError(f"pretrain.ssl.teacher_momentum goes from {momentum.start} to {momentum.end}; both must lie in [0, 1].")
    if min(temperature.start, temperature.end) <= 0:
        raise ConfigError(
            f"pretrain.ssl.teacher_temperature goes from {temperature.start} to {temperature.end}; both must be above 0."
        )
    gan = p.finetune_decoder
    if gan.adversarial_start < gan.discriminator_start:
        raise ConfigError(
            f"finetune_decoder.adversarial_start={gan.adversarial_start} lies before "
            f"finetune_decoder.discriminator_start={gan.discriminator_start}: the decoder would follow a discriminator that has "
            "not learned yet; set it to that or later."
        )
