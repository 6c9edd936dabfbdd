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
from vtp.tasks.base import Backward, Batch, Phase, Report, Task


class TrainMetricNetwork(Task):
    """Cross-entropy, in nats, on cropped and flipped pictures; `network` takes pixels in [0, 1] and gives logits.

    Its norms may take statistics over the batch, so it is the one task that no `run.microbatch` cuts; and its stage runs in one
    process, whatever the launcher: the ruler must not hang on the machine.
    """

    def __init__(self, params: MetricNetworkParams, network: nn.Module, *, image_size: int) -> None:
        self.params, self.network, self.image_size = params, network, image_size
        super().__init__(
            nn.ModuleDict({"network": network}),
            (Phase("metric", (network,), params.optimizer),),
            (),
            {"cross_entropy": 1.0, "accuracy": 0.0},
            params.steps,
            params.batch,
        )

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        pixels = random_view(
            batch["images"], draws, "view", self.batch, scale=self.params.crop_scale, size=self.image_size, flip=True
        ).of()
        logits = self.network(pixels).float()
        hits = (logits.argmax(1) == batch["labels"]).float().mean()
        terms = {"cross_entropy": F.cross_entropy(logits, batch["labels"]), "accuracy": hits}
        yield Report({name: term.detach() for name, term in terms.items()})
        yield Backward(terms, self.weights)
