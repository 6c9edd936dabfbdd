"""How close a set of generated pictures comes to a set of real ones, through torch-fidelity.

Frechet distance (arXiv 1706.08500), kernel distance (arXiv 1801.01401), inception-style score (arXiv 1606.03498), precision and
recall (arXiv 1904.06991). In Inception's features the Frechet distance is FID; in any other it is named after them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vtp import seeding
from vtp.models.frozen import inception_file

LEAST = 1000
"""Fewest pictures of a set: below, the estimators say more about the sample than about the model."""

Describe = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pictures uint8 (B, 3, H, W) -> features (B, F) and logits (B, K)."""

EXTRACTOR = "given"


class _Pictures(Dataset):
    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures.cpu()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self.pictures[index]


def compare(
    samples: Tensor, reference: Tensor, describe: Describe, *, batch: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Generated pictures against real ones in the features of any network.

    Args:
        samples, reference: uint8 (N, 3, H, W), equally many.
        describe: a network in evaluation mode on `device`, e.g. `MetricNetwork.describe`.

    Returns:
        frechet, kid (lower is better), score, precision, recall (higher is better). A function of the arguments alone.

    Raises:
        ValueError: fewer than 1,000 pictures, not equally many, or not uint8 (N, 3, H, W).
    """
    _register()
    layers = {f"feature_layer_{metric}": "features" for metric in ("fid", "kid", "prc")}
    options = {"feature_extractor": EXTRACTOR, "describe": describe, "feature_layer_isc": "logits", **layers}
    return _calculate(samples, reference, options, batch, torch.device(device))


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


def _calculate(samples: Tensor, reference: Tensor, options: dict[str, Any], batch: int, device: torch.device) -> dict[str, float]:
    import torch_fidelity

    _check(samples, reference)
    count = len(samples)
    with seeding.forked(0, "compare"):  # its loader draws from the global generator
        found = torch_fidelity.calculate_metrics(
            input1=_Pictures(samples),
            input2=_Pictures(reference),
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=min(1000, count // 2),  # a subset as large as the set would always be the same one
            rng_seed=0,
            batch_size=batch,
            cuda=device.type == "cuda",
            cache=False,
            save_cpu_ram=True,  # no worker processes for pictures that are in memory already
            verbose=False,
            **options,
        )
    return {
        "frechet": float(found[torch_fidelity.KEY_METRIC_FID]),
        "kid": float(found[torch_fidelity.KEY_METRIC_KID_MEAN]),
        "score": float(found[torch_fidelity.KEY_METRIC_ISC_MEAN]),
        "precision": float(found[torch_fidelity.KEY_METRIC_PRECISION]),
        "recall": float(found[torch_fidelity.KEY_METRIC_RECALL]),
    }


def _check(samples: Tensor, reference: Tensor) -> None:
    for name, pictures in (("samples", samples), ("reference", reference)):
        if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
            raise ValueError(f"{name} is {pictures.dtype} {tuple(pictures.shape)}; it must be uint8 (N, 3, H, W).")
        if len(pictures) < LEAST:
            raise ValueError(f"{name} holds {len(pictures)} pictures; it must hold at least {LEAST} to be measured.")
    if len(samples) != len(reference):
        raise ValueError(f"{len(samples)} samples against {len(reference)} reference pictures; take equally many of both.")


def _register() -> None:
    """Make torch-fidelity know the extractor that `describe` is handed to; once a process."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if EXTRACTOR in FEATURE_EXTRACTORS_REGISTRY:
        return

    class Given(FeatureExtractorBase):
        """Features and logits of a callable, which stays no submodule so that the library does not change it."""

        def __init__(self, name: str, features_list: list[str], describe: Describe, **_: Any) -> None:
            super().__init__(name, features_list)
            self.describe = (describe,)

        @staticmethod
        def get_provided_features_list() -> tuple[str, str]:
            return "features", "logits"

        def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.describe[0](pictures)
            given = {"features": features.double(), "logits": logits.double()}
            return tuple(given[name] for name in self.features_list)

    register_feature_extractor(EXTRACTOR, Given)
