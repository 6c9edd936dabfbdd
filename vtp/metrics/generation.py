"""How close a set of generated pictures comes to a set of real ones, through torch-fidelity.

Frechet distance (arXiv 1706.08500), kernel distance (arXiv 1801.01401), inception-style score (arXiv 1606.03498), precision and
recall (arXiv 1904.06991). In Inception's features the Frechet distance is FID; in any other it is named after them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vtp import seeding
from vtp.config import FEWEST_MEASURED
from vtp.models.frozen import inception_file

Describe = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pictures uint8 (B, 3, H, W) -> features (B, F) and logits (B, K)."""


class Described(NamedTuple):
    """A set of pictures as a network sees it: features (N, F) and logits (N, K)."""

    features: Tensor
    logits: Tensor


def compare(samples: Described, reference: Described, device: torch.device | str = "cpu") -> dict[str, float]:
    """Generated pictures against equally many real ones, as one network sees both.

    Args:
        device: where neighbours are looked for.

    Returns:
        frechet, kid (lower is better), score, precision, recall (higher is better). A function of the sets alone.

    Raises:
        ValueError: fewer than 1,000 pictures, or not equally many.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check(samples, reference)
    made, real = samples.features.double(), reference.features.double()
    # A subset as large as the set would always be the same one.
    kernel = kid_features_to_metric(made, real, kid_subset_size=min(1000, len(made) // 2), rng_seed=0, verbose=False)
    near = prc_features_to_metric(made.to(device), real.to(device), save_cpu_ram=True, verbose=False)
    return {
        "frechet": frechet(made, real),
        "kid": float(kernel[KEY_METRIC_KID_MEAN]),
        "score": float(isc_features_to_metric(samples.logits, rng_seed=0)[KEY_METRIC_ISC_MEAN]),
        "precision": float(near[KEY_METRIC_PRECISION]),
        "recall": float(near[KEY_METRIC_RECALL]),
    }


def inception(device: torch.device | str = "cpu") -> Describe:
    """The published Inception as torch-fidelity ports it: pooled features (B, 2048) and logits (B, 1008). Only in these features
    is a Frechet distance called FID.

    Raises:
        FileNotFoundError: its weights are not on disk.
    """
    file = inception_file()
    from torch_fidelity.utils import create_feature_extractor

    layers = ["2048", "logits_unbiased"]
    with seeding.forked(0, "inception"):  # weights are drawn first and the file is loaded over them
        network = create_feature_extractor(
            "inception-v3-compat", layers, cuda=False, feature_extractor_weights_path=str(file), verbose=False
        )
    return network.to(device)


def frechet(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features (n, F) and (m, F): means and unbiased covariances, in float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    fitted = [fid_features_to_statistics(features.double().cpu()) for features in (first, second)]
    return fid_statistics_to_metric(*fitted, verbose=False)[KEY_METRIC_FID]


def _check(samples: Described, reference: Described) -> None:
    for name, pictures in (("samples", samples), ("reference", reference)):
        if (count := len(pictures.features)) < FEWEST_MEASURED:
            raise ValueError(f"{name} holds {count} pictures; it must hold at least {FEWEST_MEASURED} to be measured.")
    if len(samples.features) != len(reference.features):
        raise ValueError(
            f"{len(samples.features)} samples against {len(reference.features)} reference pictures; take equally many of both."
        )
