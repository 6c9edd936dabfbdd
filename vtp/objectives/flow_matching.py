"""Flow matching on the straight path from noise (t = 0) to data (t = 1), arXiv 2210.02747 and 2401.08740."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """The point of the path at time t: t * data + (1 - t) * noise.

    The loop it vectorises: for i: x[i] = t[i] * data[i] + (1 - t[i]) * noise[i].

    Args:
        noise: (B, C, h, w) standard normal.
        data: (B, C, h, w) normalised latents.
        t: (B,) times in [0, 1], 0 noise and 1 data (RAE, arXiv 2510.11690, counts the other way).
    """
    t = t.float().view(-1, *[1] * (data.dim() - 1))
    return t * data.float() + (1 - t) * noise.float()


def velocity_target(noise: Tensor, data: Tensor) -> Tensor:
    """The velocity of the straight path, the same at all times: data - noise, (B, C, h, w)."""
    return data.float() - noise.float()


def logit_normal_times(normal: Tensor, mu: float, sigma: float) -> Tensor:
    """Training times that favour the middle of the path: sigmoid(mu + sigma * normal) (arXiv 2403.03206).

    Args:
        normal: (B,) standard normal draws.
        mu: negative moves the mass towards noise.
        sigma: spread of the logits.
    """
    return (mu + sigma * normal.float()).sigmoid()


def flow_terms(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Squared error and direction error of a predicted velocity (LightningDiT, arXiv 2501.01423; FasterDiT, arXiv 2410.10356).

    The loop it vectorises, over pictures i and positions p, with channel vectors of length C:
        velocity += |prediction[i, :, p] - target[i, :, p]|^2 / (B * positions * C)
        cosine   += (1 - cos(prediction[i, :, p], target[i, :, p])) / (B * positions)

    Zero has no direction. A DiT's last layer starts at zero, and there PyTorch's cosine, which the published loss takes as well,
    divides by its eps of 1e-8: the gradient of `cosine` at each position of the prediction has length 1e8 / (B * positions), and
    a training reports gradient norms in the millions until the last layer has grown. Nothing overflows, and AdamW's first step
    does not know the size of a gradient; but its second moment remembers it for hundreds of steps unless the gradient is
    clipped (`dit.optimizer.clip`), which LightningDiT does not do by default.

    Args:
        prediction: (B, C, h, w).
        target: (B, C, h, w).

    Returns:
        The terms "velocity" and "cosine", both of weight 1 in LightningDiT.
    """
    prediction, target = prediction.float(), target.float()
    return {
        "velocity": (prediction - target).square().mean(),
        "cosine": (1 - F.cosine_similarity(prediction, target, dim=1)).mean(),
    }
