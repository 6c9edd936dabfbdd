"""The classic autoencoder as a baseline: reconstruction from a latent that is a normal distribution (arXiv 2112.10752).

Differs from the paper in that the discriminator comes in a stage of its own, as for every tokenizer here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vtp import dist
from vtp.config import PretrainParams
from vtp.data.views import reconstruction_view, whole
from vtp.models.convolutional import ConvolutionalTokenizer
from vtp.models.tokenizer import denormalize, normalize
from vtp.objectives.reconstruction import kl_loss, l1_loss
from vtp.seeding import Draws
from vtp.tasks.base import Backward, Batch, Encoded, Phase, Report, Task, chunk_of, whole_batch


class PretrainVariational(Task):
    """Pixels come back from a sample of the latent's distribution, which is held close to the standard normal one.

    The divergence is told in nats for each of a picture's 3 H W numbers, so that its weight is the paper's, which weighs the sum
    over the latent against the sum of pixel errors, at any size of picture.

    Args:
        perceptual: frozen (B, 3, H, W) x 2 in [-1, 1] -> (B,) distance.
        image_size: side of the views, in pixels.
    """

    def __init__(
        self,
        params: PretrainParams,
        tokenizer: ConvolutionalTokenizer,
        perceptual: nn.Module,
        *,
        image_size: int,
        microbatch: int | None,
    ) -> None:
        self.params, self.tokenizer, self.perceptual, self.image_size = params, tokenizer, perceptual, image_size
        models = nn.ModuleDict({"tokenizer": tokenizer})
        phases = (Phase("pretrain", (tokenizer,), params.optimizer),)
        frozen = (perceptual,)
        super().__init__(models, phases, (), params.weights, params.steps, params.batch, microbatch=microbatch, frozen=frozen)

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        total, tokenizer = self.params.reconstruction_batch, self.tokenizer
        images = batch["images"][draws.subset("reconstruction_subset", self.batch, total)]
        view = reconstruction_view(images, draws, total, self.params.views, size=self.image_size)
        side = self.image_size // tokenizer.downsample
        noise = draws.normal("posterior", total, tokenizer.latent_channels, side, side)

        def encode(rows: slice) -> Encoded:
            pixels = view.of(rows)
            mean, log_variance = tokenizer.posterior(pixels)
            decoded = tokenizer.decoder(mean + (log_variance.float() / 2).exp() * noise[rows])
            distance = self.perceptual(2 * denormalize(decoded) - 1, 2 * pixels - 1)
            kl = kl_loss(mean, log_variance) / pixels[0].numel()
            return (), {"l1": l1_loss(decoded, normalize(pixels)), "lpips": distance.mean(), "kl": kl}

        chunk = chunk_of(len(images), self.batch // dist.world(), self.microbatch)
        yield from whole_batch(encode, None, self.params.weights, rows=len(images), chunk=chunk)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        if not dist.is_main():
            return {}
        pixels = whole(batch["images"][:8], self.image_size)
        return {"reconstructions": torch.cat([pixels, self.tokenizer.decode(self.tokenizer.encode(pixels)).clamp(0, 1)])}
