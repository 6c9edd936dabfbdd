"""Joint pre-training of the tokenizer: contrast, self-distillation and reconstruction over one encoder (VTP, arXiv 2512.13687).

One batch feeds all three: every picture and its caption the contrast, seeded random subsets the other two. An objective that is
switched off has neither parts nor passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from vtp import dist
from vtp.config import PretrainParams
from vtp.data.masks import block_masks, listed
from vtp.data.views import clip_view, global_crops, local_crops, reconstruction_view
from vtp.models.encoder import Features
from vtp.models.heads import DinoHead
from vtp.models.tokenizer import MAX_LOGIT_SCALE, VisualTokenizer, denormalize, normalize
from vtp.objectives.contrastive import clip_loss, siglip_loss
from vtp.objectives.distillation import (
    centred_targets,
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_targets,
    updated_centre,
)
from vtp.objectives.reconstruction import l1_loss
from vtp.schedules import ramp
from vtp.seeding import Draws
from vtp.tasks.base import Average, Backward, Batch, Encoded, Phase, Report, Task, slices, whole_batch

CENTRE_MOMENTUM = 0.9


class Distiller(nn.Module):
    """What reads features for self-distillation: an encoder, the head, and the centres of its scores (K,)."""

    cls_centre: Tensor
    patch_centre: Tensor

    def __init__(self, tokenizer: VisualTokenizer, head: DinoHead, prototypes: int) -> None:
        super().__init__()
        self.encoder = tokenizer.encoder
        self.head = head
        self.bottleneck_for_all = tokenizer.options.bottleneck_for_all
        self.register_buffer("cls_centre", torch.zeros(prototypes))
        self.register_buffer("patch_centre", torch.zeros(prototypes))

    def forward(self, pixels: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Features:
        """Features of pictures in [0, 1], through the bottleneck where every head reads it."""
        features = self.encoder(normalize(pixels), mask, keep)
        if not self.bottleneck_for_all:
            return features
        return Features(self.encoder.bottleneck(features.cls), self.encoder.bottleneck(features.patches))


class Pretrain(Task):
    """See the module. The tokenizer's text tower exists if and only if the objective contrasts.

    Args:
        tokenizer: freshly initialised, or loaded to be trained on.
        perceptual: frozen (B, 3, H, W) x 2 in [-1, 1] -> (B,) distance.
        image_size: side of the views that contrast and reconstruction see, in pixels.
        generator: initialises the self-distillation head.
    """

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
        self.params, self.image_size, self.perceptual = params, image_size, perceptual
        self.tokenizer = tokenizer
        if "clip" in params.objective and params.contrast == "sigmoid" and tokenizer.options.logit.bias is None:
            raise ValueError("pretrain.contrast=sigmoid needs a logit bias, which this tokenizer was built without; use softmax.")
        models = nn.ModuleDict({"tokenizer": tokenizer})
        averages: tuple[Average, ...] = ()
        trained: tuple[nn.Module, ...] = (tokenizer,)
        if "ssl" in params.objective:
            ssl = params.ssl
            options = tokenizer.options.encoder
            head = DinoHead(
                options.latent_channels if tokenizer.options.bottleneck_for_all else options.block.width,
                hidden=ssl.head_hidden,
                bottleneck=ssl.head_bottleneck,
                prototypes=ssl.prototypes,
                layers=ssl.head_layers,
            )
            head.init_weights(generator)
            self.student = Distiller(tokenizer, head, ssl.prototypes)
            self.teacher = deepcopy(self.student).requires_grad_(False)
            models["head"] = head
            models["teacher"] = self.teacher
            trained += (head,)
            averages = (
                Average(self.teacher.encoder, tokenizer.encoder, lambda step: ramp(ssl.teacher_momentum, step)),
                Average(self.teacher.head, head, lambda step: ramp(ssl.teacher_momentum, step)),
            )
        phases = (Phase("pretrain", trained, params.optimizer),)
        super().__init__(models, phases, averages, params.weights, params.steps, params.batch, microbatch=microbatch)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.perceptual.to(device)

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        images, objective = batch["images"], self.params.objective
        if "clip" in objective:
            yield from self._contrast(images, batch["tokens"], draws)
        if "ssl" in objective:
            rows = draws.subset("ssl_subset", self.batch, self.params.ssl_batch)
            yield from self._distil(images[rows], draws)
        rows = draws.subset("reconstruction_subset", self.batch, self.params.reconstruction_batch)
        yield from self._reconstruct(images[rows], draws)

    def _contrast(self, images: Tensor, tokens: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Pictures and captions of the whole batch find each other (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343)."""
        pixels = clip_view(images, draws, self.batch, self.params.views, size=self.image_size)
        keep = self._keep(draws, "clip_drop", self.batch)

        def encode(rows: slice) -> Encoded:
            features = self.tokenizer.encoder(normalize(pixels[rows]), keep=_rows(keep, rows))
            return (self.tokenizer.project(features), self.tokenizer.encode_text(tokens[rows])), {}

        def loss(image: Tensor, text: Tensor) -> dict[str, Tensor]:
            scale = self.tokenizer.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
            if self.params.contrast == "softmax":
                return {"clip": clip_loss(image, text, scale)}
            return {"clip": siglip_loss(image, text, scale, self.tokenizer.logit_bias, chunk=self.microbatch)}

        yield from whole_batch(encode, loss, self.params.weights, rows=len(images), chunk=self.microbatch)

    def _distil(self, images: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """The student predicts the teacher's view of other crops (DINO) and of hidden patches (iBOT), and spreads out (KoLeo)."""
        ssl, views, total, b = self.params.ssl, self.params.views, self.params.ssl_batch, len(images)
        crops = global_crops(images, draws, total, views).unflatten(0, (2, b))
        small = local_crops(images, draws, total, views).unflatten(0, (views.local_crops, b)) if views.local_crops else None
        side = views.global_size // self.tokenizer.options.encoder.patch
        masks = block_masks(draws, 2 * total, (side, side), ssl.mask_probability, ssl.mask_ratio)
        mask = masks.mask.unflatten(0, (2, b))
        cls_targets, patch_targets = self._targets(crops, mask, masks.most, draws.step)
        keep = self._keep(draws, "ssl_drop", (2 + views.local_crops) * total)
        keep = None if keep is None else keep.unflatten(0, (2 + views.local_crops, b))

        def encode(rows: slice) -> Encoded:
            n = rows.stop - rows.start
            kept = None if keep is None else keep[:, rows]
            seen = mask[:, rows].flatten(0, 1)
            features = self.student(crops[:, rows].flatten(0, 1), seen, None if kept is None else kept[:2].flatten(0, 1))
            logits = self.student.head(features.cls)
            targets = cls_targets[:, rows]
            terms = {"dino": dino_global_loss(logits, targets, ssl.student_temperature, num_local=views.local_crops)}
            if small is not None:
                local = self.student(small[:, rows].flatten(0, 1), None, None if kept is None else kept[2:].flatten(0, 1)).cls
                terms["dino"] = terms["dino"] + dino_local_loss(self.student.head(local), targets, ssl.student_temperature)
            places = listed(seen, masks.most)
            guesses = self.student.head(features.patches.flatten(0, 1)[places.indices])
            known = patch_targets[:, rows].flatten(0, 2)[places.indices]
            terms["ibot"] = ibot_loss(guesses, known, places.weights, 2 * n, ssl.student_temperature)
            view_1, view_2 = features.cls.chunk(2)
            return (view_1, view_2), terms

        def loss(view_1: Tensor, view_2: Tensor) -> dict[str, Tensor]:
            return {"koleo": koleo_loss(view_1) + koleo_loss(view_2)}

        yield from whole_batch(encode, loss, self.params.weights, rows=b, chunk=self.microbatch)

    @torch.no_grad()
    def _targets(self, crops: Tensor, mask: Tensor, most: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """What the teacher sees in the whole crops (2, b, 3, s, s): class targets (2, b, K), patch targets (2, b, N, K).

        Patch targets stand at the hidden places only, zeros elsewhere.
        """
        ssl, teacher = self.params.ssl, self.teacher
        pieces = [teacher(crops[:, rows].flatten(0, 1)) for rows in slices(crops.shape[1], self.microbatch)]
        cls = torch.cat([piece.cls.unflatten(0, (2, -1)) for piece in pieces], dim=1)
        patches = torch.cat([piece.patches.unflatten(0, (2, -1)) for piece in pieces], dim=1)
        places = listed(mask.flatten(0, 1), most)
        cls_logits = teacher.head(cls.flatten(0, 1))
        patch_logits = teacher.head(patches.flatten(0, 2)[places.indices])
        temperature = ramp(ssl.teacher_temperature, step)
        if ssl.targets == "sinkhorn":
            cls_targets = sinkhorn_targets(cls_logits, temperature)
            patch_targets = sinkhorn_targets(patch_logits, temperature, valid=places.valid)
        else:
            cls_targets = centred_targets(cls_logits, teacher.cls_centre, temperature)
            patch_targets = centred_targets(patch_logits, teacher.patch_centre, temperature) * places.valid[:, None]
            # A step uses the centres of the steps before it.
            teacher.cls_centre.copy_(updated_centre(teacher.cls_centre, cls_logits, CENTRE_MOMENTUM))
            teacher.patch_centre.copy_(updated_centre(teacher.patch_centre, patch_logits, CENTRE_MOMENTUM, places.valid))
        spread = patch_targets.new_zeros(mask.numel(), patch_targets.shape[1])
        spread.index_add_(0, places.indices, patch_targets)
        return cls_targets.unflatten(0, (2, -1)), spread.view(*mask.shape, -1)

    def _reconstruct(self, images: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Pixels come back through the bottleneck: L1 in normalised space, and LPIPS (arXiv 1801.03924)."""
        total = self.params.reconstruction_batch
        pixels = reconstruction_view(images, draws, total, self.params.views, size=self.image_size)
        keep = self._keep(draws, "reconstruction_drop", total)
        side = self.image_size // self.tokenizer.options.encoder.patch

        def encode(rows: slice) -> Encoded:
            target = normalize(pixels[rows])
            features = self.tokenizer.encoder(target, keep=_rows(keep, rows))
            decoded = self.tokenizer.decoder(self.tokenizer.encoder.latents(features, side, side))
            distance = self.perceptual(2 * denormalize(decoded) - 1, 2 * pixels[rows] - 1)
            return (), {"l1": l1_loss(decoded, target), "lpips": distance.mean()}

        yield from whole_batch(encode, None, self.params.weights, rows=len(images), chunk=self.microbatch)

    def _keep(self, draws: Draws, purpose: str, total: int) -> Tensor | None:
        """Stochastic depth's factors (rows, depth, 2), or None where nothing is dropped."""
        rate = self.params.drop_path
        if not rate:
            return None
        kept = draws.uniform(purpose, total, self.tokenizer.options.encoder.depth, 2) >= rate
        return kept / (1 - rate)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        pixels = batch["images"][:8] / 255
        if dist.is_main() and pixels.shape[-1] % self.tokenizer.options.encoder.patch == 0:
            return {"reconstructions": torch.cat([pixels, self.tokenizer.decode(self.tokenizer.encode(pixels)).clamp(0, 1)])}
        return {}


def _rows(keep: Tensor | None, rows: slice) -> Tensor | None:
    return None if keep is None else keep[rows]
