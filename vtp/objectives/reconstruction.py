"""What a decoded picture, and a latent, are held against."""

from __future__ import annotations

from torch import Tensor


def l1_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference over pictures, channels and pixels, in the units of the inputs.

    The loop it vectorises: for every number p of the batch: loss += |decoded[p] - images[p]| / count.

    Args:
        decoded: (B, 3, H, W), not clamped, so that a value out of range still has a gradient.
        images: (B, 3, H, W) in the same space; the pixel decoder's is ImageNet-normalised.
    """
    return (decoded.float() - images.float()).abs().mean()


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of a latent's normal distribution from the standard one, in nats: summed over its numbers, mean over pictures.

    The loop it vectorises: for every number: loss += (mean^2 + exp(log_variance) - 1 - log_variance) / 2B (arXiv 1312.6114).

    Args:
        mean, log_variance: (B, C, h, w); the usual clamp of the logarithm to [-30, 20] is the model's business.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum() / (2 * len(mean))
