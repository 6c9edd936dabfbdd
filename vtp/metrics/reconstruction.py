"""Fidelity of decoded pictures to their originals, picture by picture."""

from __future__ import annotations

import torch
from torch import Tensor

from vtp import dist


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: pixels (B, 3, H, W) in [0, 1], twice -> (B,) dB, infinite for equal pictures.

    Clamped to [0, 1] and taken on the scale 0 .. 255 without rounding to 8 bits; differs from RAE's (arXiv 2510.11690), which
    rounds.
    """
    error = 255 * (decoded.clamp(0, 1).float() - images.clamp(0, 1).float())
    return 10 * torch.log10(255**2 / error.square().mean((1, 2, 3)))


def ssim(decoded: Tensor, images: Tensor) -> Tensor:
    """Structural similarity: pixels (B, 3, H, W) in [0, 1], clamped, twice -> (B,), 1 for equal pictures.

    Gaussian window of 11 x 11 and deviation 1.5 (Wang et al. 2004, doi 10.1109/TIP.2003.819861). Pictures of at least 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = decoded.clamp(0, 1).float(), images.clamp(0, 1).float()
    value = structural_similarity_index_measure(*pair, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


class Mean:
    """Mean over every value added on every rank, in float64; batches need not be equally long."""

    def __init__(self) -> None:
        self._sum = torch.zeros(2, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add values (B,), one a picture."""
        self._sum = self._sum.to(values.device)
        self._sum += torch.stack([values.detach().double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])

    def compute(self) -> float:
        """The mean so far; every rank must call it.

        Raises:
            ValueError: nothing was added on any rank.
        """
        value, count = dist.total(self._sum).tolist()
        if count == 0:
            raise ValueError("no pictures to take a mean over.")
        return value / count
