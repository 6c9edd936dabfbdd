"""Holding the latents of an autoencoder close to what a frozen foundation model sees (VA-VAE, arXiv 2501.01423).

The latents are first projected to the width of the foundation model by a layer of their own, a 1x1 convolution without bias that
is trained with them. The paper weighs the sum of the terms by 0.1 (0.5 in the first part of its long recipe) times
`adversarial.adaptive_weight(nll_grad, alignment_grad, 1e8, eps=1e-4)`, where both gradients are those at the weight of the
encoder's last layer, and nll is the *sum* of a picture's pixel errors, averaged over pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment_loss(projected: Tensor, features: Tensor, *, distance_margin: float, cosine_margin: float) -> dict[str, Tensor]:
    """Hold projected latents to a foundation model's features, position by position and in their similarities.

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

    Raises:
        ValueError: the two grids differ.
    """
    if projected.shape != features.shape:
        raise ValueError(
            f"latents projected to {tuple(projected.shape)} are held against features {tuple(features.shape)}; "
            "project to the width of the features and resize the pictures so that the grids agree."
        )
    with torch.autocast(projected.device.type, enabled=False):
        z = F.normalize(projected.float().flatten(2), dim=1)
        f = F.normalize(features.float().flatten(2), dim=1)
        difference = z.transpose(1, 2) @ z - f.transpose(1, 2) @ f
        return {
            "distance": F.relu(difference.abs() - distance_margin).mean(),
            "cosine": F.relu(1 - cosine_margin - (z * f).sum(dim=1)).mean(),
        }
