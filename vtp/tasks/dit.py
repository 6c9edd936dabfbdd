"""A diffusion transformer learns to carry noise to latents by flow matching (LightningDiT, arXiv 2501.01423)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn

from vtp.config import DitParams
from vtp.models.dit import DiT
from vtp.objectives.flow_matching import flow_terms, interpolate, logit_normal_times, velocity_target
from vtp.seeding import Draws
from vtp.tasks.base import Average, Backward, Batch, Encoded, Phase, Report, Task, whole_batch


class TrainDit(Task):
    """Batches hold normalised `latents` (b, C, h, w) and `labels` (b,)."""

    def __init__(self, params: DitParams, model: DiT, *, microbatch: int | None) -> None:
        self.params, self.model = params, model
        self.ema = deepcopy(model).requires_grad_(False)
        super().__init__(
            nn.ModuleDict({"dit": model, "ema": self.ema}),
            (Phase("dit", (model,), params.optimizer),),
            # While the average is young, a plain mean: it would remember the initialisation otherwise.
            (Average(self.ema, model, lambda step: min(params.ema, (1 + step) / (10 + step))),),
            params.weights,
            params.steps,
            params.batch,
            microbatch=microbatch,
        )

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        latents, labels = batch["latents"], batch["labels"]
        t = logit_normal_times(draws.normal("time", self.batch), self.params.time_mu, self.params.time_sigma)
        noise = draws.normal("noise", self.batch, *latents.shape[1:])
        dropped = draws.uniform("class_dropout", self.batch) < self.params.class_dropout
        labels = torch.where(dropped, self.model.options.num_classes, labels)
        noisy, target = interpolate(noise, latents, t), velocity_target(noise, latents)

        def encode(rows: slice) -> Encoded:
            return (), flow_terms(self.model(noisy[rows], t[rows], labels[rows]), target[rows])

        yield from whole_batch(encode, None, self.params.weights, rows=len(latents), chunk=self.microbatch)
