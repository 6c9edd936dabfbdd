"""A small classifier on the labels: the feature extractor of Frechet distances where Inception's weights are not at hand.

It is never a loss: what measures a model must not have trained it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import nn

from vtp.config import MetricNetworkParams
from vtp.data.views import random_view
from vtp.seeding import Draws
from vtp.tasks.base import Backward, Batch, Encoded, Phase, Report, Task, whole_batch


class TrainMetricNetwork(Task):
    """Cross-entropy, in nats, on cropped and flipped pictures; `network` takes pixels in [0, 1] and gives logits."""

    def __init__(self, params: MetricNetworkParams, network: nn.Module, *, image_size: int, microbatch: int | None) -> None:
        self.params, self.network, self.image_size = params, network, image_size
        super().__init__(
            nn.ModuleDict({"network": network}),
            (Phase("metric", (network,), params.optimizer),),
            (),
            {"cross_entropy": 1.0, "accuracy": 0.0},
            params.steps,
            params.batch,
            microbatch=microbatch,
        )

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        pixels = random_view(
            batch["images"], draws, "view", self.batch, scale=self.params.crop_scale, size=self.image_size, flip=True
        ).of()

        def encode(rows: slice) -> Encoded:
            logits = self.network(pixels[rows]).float()
            hits = (logits.argmax(1) == batch["labels"][rows]).float().mean()
            return (), {"cross_entropy": F.cross_entropy(logits, batch["labels"][rows]), "accuracy": hits}

        yield from whole_batch(encode, None, self.weights, rows=len(pixels), chunk=self.microbatch)
