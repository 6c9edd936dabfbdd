"""Refining the pixel decoder of a frozen tokenizer against a discriminator (VQGAN, arXiv 2012.09841).

Two phases a step: the generator (the decoder), then the discriminator, which is shown the pictures the generator has just made.
The encoder is frozen, so latents stay what they are and everything trained on them stays valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from vtp import dist
from vtp.config import DecoderFinetuneParams
from vtp.data.views import random_view, whole
from vtp.models.base import Tokenizer
from vtp.models.tokenizer import denormalize, normalize
from vtp.objectives.adversarial import (
    adaptive_weight,
    diff_augment,
    hinge_discriminator,
    hinge_generator,
    last_convolution_gradient,
    lecam,
    quantise,
)
from vtp.objectives.reconstruction import l1_loss
from vtp.seeding import Draws
from vtp.tasks.base import Average, Backward, Batch, Phase, Report, Task, slices
from vtp.tasks.noise import latent_noise

LECAM_DECAY = 0.99


class LogitAverages(nn.Module):
    """Running means of the discriminator's logits, for LeCam (arXiv 2104.03310)."""

    real: Tensor
    fake: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        self.real.lerp_(dist.mean(real.float().mean()), 1 - LECAM_DECAY)
        self.fake.lerp_(dist.mean(fake.float().mean()), 1 - LECAM_DECAY)


class FinetuneDecoder(Task):
    """See the module.

    Args:
        tokenizer: frozen but for its decoder.
        discriminator: pictures in [-1, 1] -> logits (B, M).
        perceptual: frozen distance between pictures in [-1, 1].
    """

    def __init__(
        self,
        params: DecoderFinetuneParams,
        tokenizer: Tokenizer,
        discriminator: nn.Module,
        perceptual: nn.Module,
        *,
        image_size: int,
        microbatch: int | None,
    ) -> None:
        self.params, self.image_size, self.perceptual = params, image_size, perceptual
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.decoder = tokenizer.decoder.requires_grad_(True)
        self.averaged = deepcopy(self.decoder).requires_grad_(False)
        self.discriminator, self.logits = discriminator, LogitAverages()
        self.made: list[Tensor] = []
        models = nn.ModuleDict(
            {"decoder": self.decoder, "averaged": self.averaged, "discriminator": discriminator, "logits": self.logits}
        )
        phases = (
            Phase("generator", (self.decoder,), params.optimizer),
            Phase("discriminator", (discriminator,), params.discriminator_optimizer, start=params.discriminator_start),
        )
        averages = (Average(self.averaged, self.decoder, lambda step: min(params.ema, (1 + step) / (10 + step))),)
        frozen = (tokenizer, perceptual)
        super().__init__(
            models, phases, averages, params.weights, params.steps, params.batch, microbatch=microbatch, frozen=frozen
        )

    def kind(self, step: int) -> int | None:
        return (step >= self.params.discriminator_start) + 2 * (step >= self.params.adversarial_start)

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        pixels = random_view(
            batch["images"], draws, "view", self.batch, scale=self.params.crop_scale, size=self.image_size, flip=True
        ).of()
        if phase == "generator":
            yield from self._generator(pixels, draws)
        elif draws.step >= self.params.discriminator_start:
            yield from self._discriminator(pixels, draws)

    def _generator(self, pixels: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Reconstruction and, once the discriminator has warmed up, what it says, weighed at the decoder's last layer.

        The losses are differentiated at the last layer's output, so that the weight needs one pass through the loss networks and
        the decoder itself is run backwards once.
        """
        adversarial = draws.step >= self.params.adversarial_start
        pieces = slices(len(pixels), self.microbatch)
        latents: list[Tensor] = []
        grads: list[tuple[Tensor, Tensor | None]] = []
        at_weight: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}
        self.made = []
        side = self.image_size // self.tokenizer.downsample
        shape = (self.tokenizer.latent_channels, side, side)
        noise = latent_noise(draws, self.batch, shape, self.params.latent_noise)
        for rows in pieces:
            share = (rows.stop - rows.start) / len(pixels)
            latents.append(self._encode(pixels[rows], None if noise is None else noise[rows]))
            with torch.set_grad_enabled(len(pieces) == 1):
                hidden = self.decoder.hidden(latents[-1])
                output = self.decoder.last(hidden)
            terms, found = self._pulls(output.detach(), pixels[rows], rows, share, draws)
            for name, term in terms.items():
                scalars[name] = scalars.get(name, 0.0) + share * term
            if adversarial:
                for name, grad in found.items():
                    part = last_convolution_gradient(grad, hidden.detach(), kernel=self.decoder.last.kernel_size)
                    at_weight[name] = at_weight[name] + part if name in at_weight else part
            grads.append((found["reconstruction"], found.get("adversarial")))
        if adversarial:
            weight = adaptive_weight(at_weight["reconstruction"], at_weight["adversarial"], self.params.adaptive_max)
            weight = weight * self.params.weights["adversarial"]
            scalars["adaptive_weight"] = weight
        for latent, (rebuilt_grad, adversarial_grad) in zip(latents, grads, strict=True):
            if len(pieces) > 1:
                output = self.decoder.last(self.decoder.hidden(latent))
            grad = rebuilt_grad if adversarial_grad is None else rebuilt_grad + weight * adversarial_grad
            yield Backward({"decoder": (output * grad).sum()}, {"decoder": 1.0})
        yield Report(scalars)

    @torch.no_grad()
    def _encode(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        """Latents of the frozen encoder, noise added."""
        latents = self.tokenizer.encode(pixels)
        return latents if noise is None else latents + noise

    def _pulls(
        self, output: Tensor, pixels: Tensor, rows: slice, share: float, draws: Draws
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of some pictures and their share of the gradients at the last layer's output.

        Neither holds a graph: the loss networks' activations are gone before the next pictures are decoded.
        """
        leaf, adversarial = output.requires_grad_(), draws.step >= self.params.adversarial_start
        terms = self._terms(leaf, pixels, rows, draws, adversarial)
        rebuilt = (self.params.weights["l1"] * terms["l1"] + self.params.weights["lpips"] * terms["lpips"]) * share
        found = {"reconstruction": torch.autograd.grad(rebuilt, leaf, retain_graph=adversarial)[0]}
        if adversarial:
            found["adversarial"] = torch.autograd.grad(terms["adversarial"] * share, leaf)[0]
        return {name: term.detach() for name, term in terms.items()}, found

    def _terms(self, output: Tensor, pixels: Tensor, rows: slice, draws: Draws, adversarial: bool) -> dict[str, Tensor]:
        decoded = self.decoder.arranged(output)
        signed = 2 * denormalize(decoded) - 1
        self.made.append(signed.detach())
        terms = {"l1": l1_loss(decoded, normalize(pixels)), "lpips": self.perceptual(signed, 2 * pixels - 1).mean()}
        if adversarial:
            terms["adversarial"] = hinge_generator(self.discriminator(self._augment(signed, rows, draws, "augment_generator")))
        return terms

    def _discriminator(self, pixels: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Tell real pictures from decoded ones: hinge loss, and LeCam towards the running means of the logits."""
        scalars: dict[str, Tensor] = {}
        reals, fakes = [], []
        for rows, made in zip(slices(len(pixels), self.microbatch), self.made, strict=True):
            share = (rows.stop - rows.start) / len(pixels)
            real = self.discriminator(self._augment(quantise(2 * pixels[rows] - 1), rows, draws, "augment_real"))
            fake = self.discriminator(self._augment(quantise(made), rows, draws, "augment_fake"))
            terms = {
                "hinge": hinge_discriminator(real, fake) * share,
                "lecam": lecam(real, fake, self.logits.real, self.logits.fake) * share,
            }
            shown = terms | {"logit_real": real.float().mean() * share, "logit_fake": fake.float().mean() * share}
            for name, value in shown.items():
                scalars[name] = scalars.get(name, 0.0) + value.detach()
            reals.append(real.detach())
            fakes.append(fake.detach())
            yield Backward(terms, {"hinge": 1.0, "lecam": self.params.weights["lecam"]})
        self.logits.update(torch.cat(reals), torch.cat(fakes))
        yield Report(scalars)

    def _augment(self, signed: Tensor, rows: slice, draws: Draws, purpose: str) -> Tensor:
        uniforms = draws.uniform(purpose, self.batch, 7)[rows].T[..., None, None]
        # Cutout stays off: a decoder is judged on whole pictures.
        on = draws.common(f"{purpose}/on", 2) < self.params.augment
        return diff_augment(signed, uniforms, torch.cat([on, torch.zeros_like(on[:1])]))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        pixels = whole(batch["images"][:8], self.image_size)
        decoded = denormalize(self.averaged(self.tokenizer.encode(pixels)))
        return {"reconstructions": torch.cat([pixels, decoded.clamp(0, 1)])}
