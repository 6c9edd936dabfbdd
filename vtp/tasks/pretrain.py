"""Joint pre-training of the tokenizer: contrast, self-distillation and reconstruction over one encoder (VTP, arXiv 2512.13687).

One batch feeds all three: every picture and its caption the contrast, seeded random subsets the other two. An objective that is
switched off has neither parts nor passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtp import dist
from vtp.config import PretrainParams
from vtp.data.masks import Masks, block_masks, listed
from vtp.data.views import clip_view, global_crops, local_crops, reconstruction_view, whole
from vtp.models.encoder import Features
from vtp.models.heads import DinoHead
from vtp.models.tokenizer import MAX_LOGIT_SCALE, VisualTokenizer, denormalize, normalize
from vtp.objectives.contrastive import clip_loss, siglip_loss
from vtp.objectives.distillation import Prices, distillation_losses, koleo_loss, sinkhorn_prices, updated_centre
from vtp.objectives.reconstruction import l1_loss
from vtp.schedules import ramp
from vtp.seeding import Draws
from vtp.tasks.base import Average, Backward, Batch, Encoded, Phase, Report, Task, chunk_of, slices, whole_batch

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

    def forward(
        self, pixels: Tensor, mask: Tensor | None = None, keep: Tensor | None = None, *, patches: bool = True
    ) -> Features:
        """Features of pictures in [0, 1], through the bottleneck where every head reads it."""
        features = self.encoder(normalize(pixels), mask, keep, patches=patches)
        if not self.bottleneck_for_all:
            return features
        return Features(self.encoder.bottleneck(features.cls), self.encoder.bottleneck(features.patches))


@dataclass(frozen=True)
class Lesson:
    """What the teacher sees in the global crops of n pictures: points on its head's sphere, from which scores follow.

    Attributes:
        cls: (2n, d) of whole crops, view-major.
        patches: (m, d) of the hidden places.
        places: where they are.
    """

    cls: Tensor
    patches: Tensor
    places: Masks


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
        stride = params.batch // params.reconstruction_batch
        if params.share_clip_view and microbatch is not None and microbatch < params.batch and microbatch % stride:
            raise ValueError(
                f"run.microbatch={microbatch} does not divide by {stride}, of which one picture is reconstructed; "
                f"pretrain.share_clip_view=true needs a multiple."
            )
        self.params, self.image_size, self.perceptual = params, image_size, perceptual
        self.tokenizer = tokenizer
        if "clip" in params.objective and params.contrast == "sigmoid" and tokenizer.options.logit.bias is None:
            raise ValueError("pretrain.contrast=sigmoid needs a logit bias, which this tokenizer was built without; use softmax.")
        models = nn.ModuleDict({"tokenizer": tokenizer})
        averages: tuple[Average, ...] = ()
        trained: tuple[nn.Module, ...] = (tokenizer,)
        late: tuple[nn.Module, ...] = ()
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
            trained, late = (tokenizer, head), (head.last_layer,)
            averages = (
                Average(self.teacher.encoder, tokenizer.encoder, lambda step: ramp(ssl.teacher_momentum, step)),
                Average(self.teacher.head, head, lambda step: ramp(ssl.teacher_momentum, step)),
            )
        phases = (Phase("pretrain", trained, params.optimizer, late, params.ssl.freeze_last_layer),)
        frozen = (perceptual,)
        super().__init__(
            models, phases, averages, params.weights, params.steps, params.batch, microbatch=microbatch, frozen=frozen
        )

    def passes(self, phase: str, batch: Batch, draws: Draws) -> Iterator[Backward | Report]:
        images, objective = batch["images"], self.params.objective
        if "clip" in objective:
            yield from self._contrast(images, batch["tokens"], draws)
        if "ssl" in objective:
            rows = draws.subset("ssl_subset", self.batch, self.params.ssl_batch)
            yield from self._distil(images[rows], draws)
        if not self.params.share_clip_view:
            rows = draws.subset("reconstruction_subset", self.batch, self.params.reconstruction_batch)
            yield from self._reconstruct(images[rows], draws)

    def _contrast(self, images: Tensor, tokens: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Pictures and captions of the whole batch find each other (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343).

        With `share_clip_view` the subset that is to be reconstructed is decoded from these very features.
        """
        # The number itself is held, as OpenCLIP does: of one beyond a bound in the loss the gradient is zero, for good.
        with torch.no_grad():
            self.tokenizer.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        view = clip_view(images, draws, self.batch, self.params.views, size=self.image_size)
        keep = self._keep(draws, "clip_drop", self.batch)
        stride = self.batch // self.params.reconstruction_batch
        rebuilt = None
        if self.params.share_clip_view:
            rebuilt = draws.subset("reconstruction_subset", self.batch, self.params.reconstruction_batch)

        read = rebuilt is not None or self.tokenizer.options.clip_feature != "cls"

        def encode(rows: slice) -> Encoded:
            pixels = view.of(rows)
            features = self.tokenizer.encoder(normalize(pixels), keep=_rows(keep, rows), patches=read)
            embeddings = self.tokenizer.project(features), self.tokenizer.encode_text(tokens[rows])
            if rebuilt is None or not torch.is_grad_enabled():
                return embeddings, {}
            mine = rebuilt[rows.start // stride : rows.stop // stride] - rows.start
            return embeddings, self._rebuilt(Features(features.cls[mine], features.patches[mine]), pixels[mine])

        def loss(image: Tensor, text: Tensor) -> dict[str, Tensor]:
            scale = self.tokenizer.logit_scale.exp()
            if self.params.contrast == "softmax":
                return {"clip": clip_loss(image, text, scale)}
            return {"clip": siglip_loss(image, text, scale, self.tokenizer.logit_bias, chunk=self.microbatch)}

        yield from whole_batch(encode, loss, self.params.weights, rows=len(images), chunk=self._chunk(len(images)))

    def _distil(self, images: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """The student predicts the teacher's view of other crops (DINO) and of hidden patches (iBOT), and spreads out (KoLeo)."""
        ssl, views, total, b = self.params.ssl, self.params.views, self.params.ssl_batch, len(images)
        chunk = self._chunk(b)
        crops = global_crops(images, draws, total, views)
        small = local_crops(images, draws, total, views) if views.local_crops else None
        side = views.global_size // self.tokenizer.options.encoder.patch
        masks = block_masks(draws, 2 * total, (side, side), ssl.mask_probability, ssl.mask_ratio)
        mask = masks.mask.unflatten(0, (2, b))
        keep = self._keep(draws, "ssl_drop", total, copies=2 + views.local_crops)
        keep = None if keep is None else keep.unflatten(0, (2 + views.local_crops, b))
        # Where a batch fits, teacher and student look at the same pixels; where it does not, pixels are cheaper than memory.
        whole = crops.of() if chunk is None else None
        lessons = {
            rows.start: self._lesson(crops.of(rows) if whole is None else whole, listed(mask[:, rows].flatten(0, 1), masks.most))
            for rows in slices(b, chunk)
        }
        prices = self._prices(list(lessons.values()), draws)

        def encode(rows: slice) -> Encoded:
            lesson, kept = lessons[rows.start], None if keep is None else keep[:, rows]
            pixels = crops.of(rows) if whole is None else whole
            features = self.student(pixels, lesson.places.mask, None if kept is None else kept[:2].flatten(0, 1))
            if not torch.is_grad_enabled():
                return features.cls.chunk(2), {}
            read = [features.cls, features.patches.flatten(0, 1).index_select(0, lesson.places.indices)]
            if small is not None:
                kept = None if kept is None else kept[2:].flatten(0, 1)
                read.append(self.student(small.of(rows), None, kept, patches=False).cls)
            scores = self.student.head(torch.cat(read))
            cls, patches = self.teacher.head.scores(lesson.cls), self.teacher.head.scores(lesson.patches)
            dino, ibot = distillation_losses(scores, cls, patches, prices, lesson.places.weights, ssl.student_temperature)
            return features.cls.chunk(2), {"dino": dino, "ibot": ibot}

        def loss(view_1: Tensor, view_2: Tensor) -> dict[str, Tensor]:
            return {"koleo": koleo_loss(view_1) + koleo_loss(view_2)}

        yield from whole_batch(encode, loss, self.params.weights, rows=b, chunk=chunk)

    @torch.no_grad()
    def _lesson(self, pixels: Tensor, places: Masks) -> Lesson:
        """What the teacher sees in the whole global crops (2n, 3, s, s) of n pictures."""
        features = self.teacher(pixels)
        patches = features.patches.flatten(0, 1).index_select(0, places.indices)
        sphere = self.teacher.head.sphere(torch.cat([features.cls, patches]))
        return Lesson(sphere[: len(pixels)], sphere[len(pixels) :], places)

    @torch.no_grad()
    def _prices(self, lessons: list[Lesson], draws: Draws) -> Prices:
        """What the teacher's prototypes cost in this step, from all of the global batch or from the steps before it."""
        ssl, teacher, score = self.params.ssl, self.teacher, self.teacher.head.scores
        temperature = draws.scheduled("teacher_temperature", lambda step: ramp(ssl.teacher_temperature, step))
        cls, patches = [lesson.cls for lesson in lessons], [lesson.patches for lesson in lessons]
        valid = [lesson.places.valid for lesson in lessons]
        if ssl.targets == "sinkhorn":
            return Prices(
                temperature, sinkhorn_prices(score, cls, temperature), sinkhorn_prices(score, patches, temperature, valid=valid)
            )
        prices = Prices(temperature, teacher.cls_centre / temperature, teacher.patch_centre / temperature)
        # A step uses the centres of the steps before it.
        teacher.cls_centre.copy_(updated_centre(teacher.cls_centre, score, cls, CENTRE_MOMENTUM))
        teacher.patch_centre.copy_(updated_centre(teacher.patch_centre, score, patches, CENTRE_MOMENTUM, valid=valid))
        return prices

    def _reconstruct(self, images: Tensor, draws: Draws) -> Iterator[Backward | Report]:
        """Pixels come back through the bottleneck."""
        total = self.params.reconstruction_batch
        view = reconstruction_view(images, draws, total, self.params.views, size=self.image_size)
        keep = self._keep(draws, "reconstruction_drop", total)

        def encode(rows: slice) -> Encoded:
            pixels = view.of(rows)
            return (), self._rebuilt(self.tokenizer.encoder(normalize(pixels), keep=_rows(keep, rows)), pixels)

        yield from whole_batch(encode, None, self.params.weights, rows=len(images), chunk=self._chunk(len(images)))

    def _rebuilt(self, features: Features, pixels: Tensor) -> dict[str, Tensor]:
        """How far decoded features are from their pixels: L1 in normalised space, and LPIPS (arXiv 1801.03924)."""
        side = self.image_size // self.tokenizer.options.encoder.patch
        decoded = self.tokenizer.decoder(self.tokenizer.encoder.latents(features, side, side))
        distance = self.perceptual(2 * denormalize(decoded) - 1, 2 * pixels - 1)
        return {"l1": l1_loss(decoded, normalize(pixels)), "lpips": distance.mean()}

    def _chunk(self, rows: int) -> int | None:
        """See `chunk_of`."""
        return chunk_of(rows, self.batch // dist.world(), self.microbatch)

    def _keep(self, draws: Draws, purpose: str, total: int, *, copies: int = 1) -> Tensor | None:
        """Stochastic depth's factors for crops of this rank's b pictures, crop-major, (copies * b, depth, 2); None: no drops."""
        rate = self.params.drop_path
        if not rate:
            return None
        kept = draws.uniform(purpose, total, copies, self.tokenizer.options.encoder.depth, 2) >= rate
        return kept.transpose(0, 1).flatten(0, 1) / (1 - rate)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        if not dist.is_main():
            return {}
        pixels = whole(batch["images"][:8], self.image_size)
        return {"reconstructions": torch.cat([pixels, self.tokenizer.decode(self.tokenizer.encode(pixels)).clamp(0, 1)])}


def _rows(keep: Tensor | None, rows: slice) -> Tensor | None:
    return None if keep is None else keep[rows]
