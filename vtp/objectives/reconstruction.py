"""What a decoded picture, and a latent, are held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference over pictures, channels and pixels, in the units of the inputs.

    The loop it vectorises: for every number p of the batch: loss += |decoded[p] - images[p]| / count.

    Args:
        decoded: (B, 3, H, W), not clamped, so that a value out of range still has a gradient.
        images: (B, 3, H, W) in the same space; the pixel decoder's is ImageNet-normalised.
    """
    return (decoded.float() - images.float()).abs().mean()


def alignment_loss(projected: Tensor, features: Tensor, *, distance_margin: float, cosine_margin: float) -> dict[str, Tensor]:
    """Hold latents close to a frozen foundation model, position by position and in their similarities (VA-VAE, arXiv 2501.01423).

    The loops it vectorises, with z and f the unit channel vectors of one picture at positions i, j, averaged over pictures:
        for i, j: distance += relu(|<z_i, z_j> - <f_i, f_j>| - distance_margin) / N^2
        for i:    cosine   += relu(1 - cosine_margin - <z_i, f_i>) / N

    Args:
        projected: (B, F, h, w) latents, projected to the width of the foundation model.
        features: (B, F, h, w) of the foundation model at the same positions.
        distance_margin: difference of similarities that costs nothing; 0.25 in the paper.
        cosine_margin: distance 1 - cosine that costs nothing; 0.5 in the paper.

    Returns:
        The terms "distance" and "cosine", both of weight 1 in the paper.
    """
    with torch.autocast(projected.device.type, enabled=False):
        z = F.normalize(projected.float().flatten(2), dim=1)
        f = F.normalize(features.float().flatten(2), dim=1)
        difference = z.transpose(1, 2) @ z - f.transpose(1, 2) @ f
        return {
            "distance": F.relu(difference.abs() - distance_margin).mean(),
            "cosine": F.relu(1 - cosine_margin - (z * f).sum(dim=1)).mean(),
        }
