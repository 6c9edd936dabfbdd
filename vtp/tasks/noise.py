"""Noise on latents while a decoder learns, so that it forgives what is generated a little wrong (RAE, arXiv 2510.11690)."""

from __future__ import annotations

from torch import Tensor

from vtp.seeding import Draws


def latent_noise(draws: Draws, total: int, shape: tuple[int, ...], most: float) -> Tensor | None:
    """What is added to the latents of this rank's rows of a batch of `total`: (rows, *shape), or None for `most` = 0.

    Normal, with a deviation of its own for each picture, uniform in [0, most), in the units of the latents; RAE takes 0.8 for
    latents of deviation 1.
    """
    if not most:
        return None
    deviation = most * draws.uniform("latent_noise_deviation", total, *(1 for _ in shape))
    return deviation * draws.normal("latent_noise", total, *shape)
