"""Other ways to a tokenizer, for comparison under equal conditions: the same networks, data, reconstruction and schedule.

Frozen (RAE, arXiv 2510.11690): the trunk of a tokenizer that understands stays as it is; bottleneck and decoder learn to rebuild.
Differs from the paper in that there may be a bottleneck; without one (as many latent channels as the encoder is wide) features
are the latents, as there.

Aligned (VA-VAE, arXiv 2501.01423): an autoencoder whose latents are held close to the features of a frozen foundation model.
Differs from the paper in its networks, which are the transformers used here, and in that the latent is no distribution.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vtp.config import PretrainParams
from vtp.data.views import reconstruction_view
from vtp.models.foundation import Foundation, TokenizerFoundation
from vtp.models.tokenizer import VisualTokenizer, denormalize, normalize
from vtp.objectives.adversarial import adaptive_weight, last_layer_gradient
from vtp.objectives.alignment import alignment_loss
from vtp.objectives.reconstruction import l1_loss
from vtp.seeding import Draws
from vtp.tasks.base import Backward, Batch, Encoded, Phase, Report, slices, whole_batch
from vtp.tasks.noise import latent_noise
from vtp.tasks.pretrain import Pretrain

EPS = 1e-4
"""Keeps the adaptive weight finite, as in VA-VAE."""


class PretrainFrozen(Pretrain):
    """Reconstruction from an encoder that only its bottleneck is trained of. Its weights are in place when this is built."""

    def __init__(
        self,
        params: PretrainParams,
        tokenizer: VisualTokenizer,
        perceptual: nn.Module,
        *,
        image_size: int,
        generator: torch.Generator,
        microbatch: int | None,
    ) -> None:
        tokenizer.encoder.requires_grad_(False)
        if tokenizer.options.encoder.latent_channels != tokenizer.options.encoder.block.width:
            tokenizer.encoder.feature_bottleneck.requires_grad_(True)
        super().__init__(params, tokenizer, perceptual, image_size=image_size, generator=generator, microbatch=microbatch)

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        total, encoder = self.params.reconstruction_batch, self.tokenizer.encoder
        images = batch["images"][draws.subset("reconstruction_subset", self.batch, total)]
        view = reconstruction_view(images, draws, total, self.params.views, size=self.image_size)
        side = self.image_size // encoder.options.patch
        noise = latent_noise(draws, total, (encoder.options.latent_channels, side, side), self.params.latent_noise)

        def encode(rows: slice) -> Encoded:
            pixels = view.of(rows)
            target = normalize(pixels)
            with torch.no_grad():
                features = encoder(target)
            latents = encoder.latents(features, side, side)
            decoded = self.tokenizer.decoder(latents if noise is None else latents + noise[rows])
            distance = self.perceptual(2 * denormalize(decoded) - 1, 2 * pixels - 1)
            return (), {"l1": l1_loss(decoded, target), "lpips": distance.mean()}

        yield from whole_batch(encode, None, self.params.weights, rows=len(images), chunk=self._chunk(len(images)))


class PretrainAligned(Pretrain):
    """Reconstruction, and latents that a layer of their own projects towards a foundation model's features.

    The alignment pulls at the bottleneck's weight `align.weight` times as hard as reconstruction does.

    Args:
        foundation: what the latents are held close to.
        generator: initialises the projection.
    """

    def __init__(
        self,
        params: PretrainParams,
        tokenizer: VisualTokenizer,
        perceptual: nn.Module,
        foundation: Foundation,
        *,
        image_size: int,
        generator: torch.Generator,
        microbatch: int | None,
    ) -> None:
        super().__init__(params, tokenizer, perceptual, image_size=image_size, generator=generator, microbatch=microbatch)
        if tokenizer.options.encoder.latent_channels == tokenizer.options.encoder.block.width:
            raise ValueError(
                "pretrain.objective=ae+align needs a bottleneck: tokenizer.latent_channels below the encoder's width."
            )
        self.foundation = foundation
        self.projection = nn.Linear(tokenizer.options.encoder.latent_channels, foundation.width, bias=False)
        nn.init.trunc_normal_(self.projection.weight, std=0.02, generator=generator)
        self.models["projection"] = self.projection
        self.phases = (Phase("pretrain", (tokenizer, self.projection), params.optimizer),)
        self.frozen = (*self.frozen, foundation)

    def kind(self, step: int) -> int | None:
        """Steps can be recorded where the foundation is a trunk of ours; what another one does is not ours to know."""
        return 0 if isinstance(self.foundation, TokenizerFoundation) else None

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        total = self.params.reconstruction_batch
        images = batch["images"][draws.subset("reconstruction_subset", self.batch, total)]
        view = reconstruction_view(images, draws, total, self.params.views, size=self.image_size)
        keep = self._keep(draws, "reconstruction_drop", total)
        pieces = slices(len(images), self._chunk(len(images)))
        at_weight: list[Tensor] = []
        scalars: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        for rows in pieces:
            share = (rows.stop - rows.start) / len(images)
            terms, features, latents = self._forward(view.of(rows), None if keep is None else keep[rows])
            found = [self._pull(self._sum(terms, names) * share, features, latents) for names in (REBUILT, ALIGNED)]
            at_weight = [a + b for a, b in zip(at_weight, found, strict=True)] if at_weight else found
            for name, term in terms.items():
                scalars[name] = scalars.get(name, 0.0) + share * term.detach()
            if len(pieces) > 1:  # the graph of one piece is gone before the next is encoded
                del terms, term, features, latents
        weight = self.params.align.weight * adaptive_weight(at_weight[0], at_weight[1], self.params.align.adaptive_max, eps=EPS)
        weights = {name: self.params.weights[name] for name in REBUILT} | dict.fromkeys(ALIGNED, 1.0)
        for rows in pieces:
            share = (rows.stop - rows.start) / len(images)
            if len(pieces) > 1:
                terms = self._forward(view.of(rows), None if keep is None else keep[rows])[0]
            yield Backward({name: term * share * (weight if name in ALIGNED else 1) for name, term in terms.items()}, weights)
            del terms
        yield Report(scalars | {"align_weight": weight})

    def _forward(self, pixels: Tensor, keep: Tensor | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """All terms of some pictures; the bottleneck's input (B, N, D) and output (B, N, C)."""
        side = self.image_size // self.tokenizer.options.encoder.patch
        target = normalize(pixels)
        features = self.tokenizer.encoder(target, keep=keep).patches
        latents = self.tokenizer.encoder.bottleneck(features)
        decoded = self.tokenizer.decoder(latents.transpose(1, 2).unflatten(2, (side, side)))
        distance = self.perceptual(2 * denormalize(decoded) - 1, 2 * pixels - 1)
        projected = self.projection(latents).transpose(1, 2).unflatten(2, (side, side))
        align = self.params.align
        aligned = alignment_loss(
            projected,
            self.foundation(pixels, (side, side)),
            distance_margin=align.distance_margin,
            cosine_margin=align.cosine_margin,
        )
        return {"l1": l1_loss(decoded, target), "lpips": distance.mean(), **aligned}, features, latents

    def _sum(self, terms: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
        return torch.stack([self.params.weights.get(name, 1.0) * terms[name].float() for name in names]).sum()

    def _pull(self, loss: Tensor, features: Tensor, latents: Tensor) -> Tensor:
        """Gradient of a loss at the bottleneck's weight (C, D), mean over ranks."""
        (grad,) = torch.autograd.grad(loss, latents, retain_graph=True)
        return last_layer_gradient(grad, features.detach(), channels=2)


REBUILT, ALIGNED = ("l1", "lpips"), ("distance", "cosine")
