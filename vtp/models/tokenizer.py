"""The visual tokenizer: an encoder that understands, a linear bottleneck, a decoder that paints.

VTP, arXiv 2512.13687. What is trained how stands in `vtp/tasks`; here is what a user of a trained tokenizer needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp.compiling import compilable
from vtp.models import pretrained
from vtp.models.base import Tokenizer, form
from vtp.models.card import Card
from vtp.models.decoder import Decoder
from vtp.models.encoder import Encoder, Features
from vtp.models.hub import fetch
from vtp.models.options import TokenizerOptions
from vtp.models.text import TextOptions, TextTower

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_LOGIT_SCALE = math.log(100)


@compilable
def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to ImageNet-normalised space, the encoder's input and the decoder's output."""
    return (pixels - _channels(MEAN, pixels.device)) / _channels(STD, pixels.device)


def denormalize(images: Tensor) -> Tensor:
    """ImageNet-normalised space to pixels, not clamped."""
    return images * _channels(STD, images.device) + _channels(MEAN, images.device)


def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1), filled on the device: a copy from the host would make every step wait for it."""
    return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])


class VisualTokenizer(Tokenizer):
    """Encoder, decoder and, where captions were used, a text tower with the contrastive head.

    >>> tokenizer = VisualTokenizer.from_pretrained("data/finetune_decoder")
    >>> latents = tokenizer.encode(pixels)         # (B, 3, H, W) in [0, 1] -> (B, C, H/p, W/p)
    >>> pixels = tokenizer.decode(latents)         # back, unclamped

    Pictures are floats, nominally in [0, 1] and never range-checked; they are normalised inside. H and W are any multiples of
    the patch p. Letters: B pictures, N patches, D width, C latent channels, T width of the joint space, L caption ids.
    """

    decoder: Decoder

    def __init__(self, options: TokenizerOptions) -> None:
        super().__init__()
        self.options = options
        self.encoder = Encoder(options.encoder)
        if options.decoder is not None:
            self.decoder = Decoder(options.decoder)
        if options.text is not None:
            width = options.encoder.latent_channels if options.bottleneck_for_all else options.encoder.block.width
            self.text = TextTower(options.text)
            self.visual_proj = nn.Linear(width, options.text.width, bias=False)
            shape = (1,) if options.logit.vector else ()
            # A configured scale of 0 counts as none, as in the published code.
            self.logit_scale = nn.Parameter(torch.full(shape, options.logit.scale or math.log(1 / 0.07)))
            if options.logit.bias is not None:
                self.logit_bias = nn.Parameter(torch.full(shape, float(options.logit.bias)))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise every part; logit scale and bias keep the start values of the options."""
        self.encoder.init_weights(generator)
        if self.options.decoder is not None:
            self.decoder.init_weights(generator)
        if self.options.text is not None:
            self.text.init_weights(generator)
            bound = self.visual_proj.in_features**-0.5
            self.visual_proj.weight.uniform_(-bound, bound, generator=generator)

    @property
    def image_size(self) -> int:
        return self.options.image_size

    @property
    def downsample(self) -> int:
        return self.options.encoder.patch

    @property
    def latent_channels(self) -> int:
        return self.options.encoder.latent_channels

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures, deterministic: (B, 3, H, W) -> (B, C, H/p, W/p). No noise, no scaling: bottlenecked patches.

        Raises:
            ValueError: not a float picture batch (uint8 says how to convert it), or sides that are no multiple of the patch.
        """
        return self.encoder.latents(self._features(pixels), *self._grid(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents: (B, C, h, w) -> (B, 3, h * p, w * p), nominally in [0, 1]; clamping is the caller's.

        Raises:
            ValueError: no floats, another number of channels than the tokenizer's, or a tokenizer without a decoder.
        """
        if self.options.decoder is None:
            raise ValueError("this tokenizer has no decoder (train_reconstruction is false): it encodes only.")
        self._check_latents(latents)
        return denormalize(self.decoder(latents.to(self.decoder.proj_in.weight.dtype)))

    def features(self, pixels: Tensor, bottleneck: bool = False) -> Features:
        """Class token (B, D) and patches (B, N, D) after the last norm; `bottleneck=True`: through the bottleneck, (…, C).

        Raises:
            ValueError: as `encode`.
        """
        features = self._features(pixels)
        if not bottleneck:
            return features
        return Features(self.encoder.bottleneck(features.cls), self.encoder.bottleneck(features.patches))

    def intermediate_features(self, pixels: Tensor, layers: int | Sequence[int], normalize: bool = True) -> list[Features]:
        """Class token (B, D) and patches (B, N, D) after some blocks, in ascending order; what linear probes read (DINOv2).

        Args:
            layers: how many of the last blocks, or the numbers of the blocks, from 0.
            normalize: through the last norm. The bottleneck is never applied.

        Raises:
            ValueError: as `encode`; or there is no such block.
        """
        depth = self.options.encoder.depth
        wanted = list(range(depth - layers, depth)) if isinstance(layers, int) else sorted(set(layers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= depth:
            raise ValueError(f"layers={layers} of an encoder with {depth} blocks; give 1 to {depth}, or numbers from 0.")
        self._grid(pixels)
        return self.encoder.intermediate(self._normalized(pixels), wanted, normalize)

    def encode_image(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """Contrastive feature of pictures (B, T), of unit length if `normalize` (CLIP, arXiv 2103.00020).

        Raises:
            ValueError: as `encode`; or the tokenizer was trained without captions.
        """
        self._needs_text()
        return self.project(self._features(pixels), normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Contrastive feature of caption ids: (B, L) int64 -> (B, T), of unit length if `normalize`.

        L is the context length: padding is part of what the tower was trained on. A tower that pools nothing gives (B, L, T).

        Raises:
            ValueError: another length or no whole numbers; or the tokenizer was trained without captions.
        """
        text = self._needs_text()
        if tokens.dim() != 2 or tokens.shape[1] != text.context_length or tokens.is_floating_point():
            raise ValueError(
                f"caption ids {form(tokens)}; expected whole numbers (B, {text.context_length}), "
                f"as vtp.data.captions.tokenize(texts, {text.context_length}) gives them."
            )
        try:
            feature = self.text(tokens)
        except IndexError:  # on a CPU only; a GPU is not waited for
            wrong = tokens[(tokens < 0) | (tokens >= text.vocabulary)]
            raise ValueError(f"caption id {int(wrong[0])} is none of this tokenizer's {text.vocabulary}.") from None
        return F.normalize(feature, dim=-1) if normalize else feature

    def logits(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Similarity of every picture to every caption, times exp(logit_scale), plus logit_bias if there is one: (B, captions).

        Raises:
            ValueError: as `encode_image` and `encode_text`; or the text tower does not pool, so a caption has no one feature.
        """
        text = self._needs_text()
        if text.pool == "none":
            raise ValueError("text_pool_type=none gives a feature for every caption id, so there is no similarity to a picture.")
        similarity = self.logit_scale.exp() * self.encode_image(pixels) @ self.encode_text(tokens).T
        return similarity if self.options.logit.bias is None else similarity + self.logit_bias

    def project(self, features: Features, normalize: bool = True) -> Tensor:
        """The contrastive head on features already computed: (B, T)."""
        self._needs_text()
        feature = features.cls if self.options.clip_feature == "cls" else features.patches.mean(1)
        if self.options.bottleneck_for_all:
            feature = self.encoder.bottleneck(feature)
        feature = self.visual_proj(feature)
        return F.normalize(feature, dim=-1) if normalize else feature

    def pooled(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `Tokenizer`. The trunk's vector is the class token beside the mean of the patches (B, 2D)."""
        found = self.features(pixels)
        parts = {
            "trunk": torch.cat([found.cls, found.patches.mean(1)], dim=1),
            "bottleneck": self.encoder.bottleneck(found.patches).mean(1),
        }
        return parts if self.options.text is None else parts | {"image": self.project(found)}

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, hub: bool = False, rope: Literal["bfloat16", "float32"] | None = None
    ) -> VisualTokenizer:
        """Read a tokenizer in the published layout, this project's or the authors', in eval mode and frozen, on the CPU.

        Weights are mapped from the file, not copied: they cost memory when they are first used, and may be trained on.

        Args:
            folder: a path; or with `hub` a name on the Hugging Face Hub, `org/name` or `org/name@revision`.
            hub: fetch it if it is not in the local cache. Nothing is ever fetched unasked.
            rope: dtype to compute and apply RoPE in; default: what the configuration says, and bfloat16, the published code's,
                where it says nothing. float32 on published weights changes outputs by about 1e-3.

        Raises:
            ValueError: a missing, cut or changed file, missing or extra tensors, an unsupported configuration; all by name.
        """
        path = fetch(str(folder)) if hub else Path(folder)
        options = pretrained.read_options(path)
        stored = options.encoder.block.rope
        with torch.device("meta"):
            model = cls(options.with_rope(rope or stored))
        pretrained.fill(model, path)
        if rope not in (None, stored):
            pretrained.reset_rope(model)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, card: Card | None = None) -> None:
        """Write the published layout: config.json, model.safetensors, a model card, and vtp_extra.safetensors for our additions.

        The folder appears whole or not at all. What the published inference code would read wrongly is said as a warning.

        Args:
            card: what README.md says of the weights' origin, license and measured numbers.

        Raises:
            ValueError: the folder exists and holds other things.
        """
        pretrained.write(Path(folder).absolute(), self.options, self, card or Card())

    def _features(self, pixels: Tensor) -> Features:
        self._grid(pixels)
        return self.encoder(self._normalized(pixels))

    def _normalized(self, pixels: Tensor) -> Tensor:
        return normalize(pixels).to(self.encoder.patch_embed.proj.weight.dtype)

    def _needs_text(self) -> TextOptions:
        if self.options.text is None:
            raise ValueError("this tokenizer was trained without captions: it has no text tower and no contrastive head.")
        return self.options.text
