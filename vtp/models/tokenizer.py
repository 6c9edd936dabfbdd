"""The visual tokenizer: an encoder that understands, a linear bottleneck, a decoder that paints.

VTP, arXiv 2512.13687. What is trained how stands in `vtp/tasks`; here is what a user of a trained tokenizer needs.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp import artifacts
from vtp.models.decoder import Decoder
from vtp.models.encoder import Encoder, Features
from vtp.models.official import TokenizerOptions, from_config, from_official, misread, to_config, to_official
from vtp.models.text import TextTower

log = logging.getLogger(__name__)

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_LOGIT_SCALE = math.log(100)


def normalize(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] to ImageNet-normalised space, the encoder's input and the decoder's output."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels - mean) / std


def denormalize(images: Tensor) -> Tensor:
    """ImageNet-normalised space to pixels, not clamped."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return images * std + mean


class VisualTokenizer(nn.Module):
    """Encoder, decoder and, where captions were used, a text tower with the contrastive head.

    >>> tokenizer = VisualTokenizer.from_pretrained("data/finetune_decoder")
    >>> latents = tokenizer.encode(pixels)         # (B, 3, H, W) in [0, 1] -> (B, C, H/p, W/p)
    >>> pixels = tokenizer.decode(latents)         # back, unclamped
    """

    def __init__(self, options: TokenizerOptions) -> None:
        super().__init__()
        self.options = options
        self.encoder = Encoder(options.encoder)
        self.decoder = Decoder(options.decoder)
        if options.text is not None:
            width = options.encoder.latent_channels if options.bottleneck_for_all else options.encoder.block.width
            self.text = TextTower(options.text)
            self.visual_proj = nn.Linear(width, options.text.width, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise every part; the logit scale starts at ln(1 / 0.07)."""
        self.encoder.init_weights(generator)
        self.decoder.init_weights(generator)
        if self.options.text is not None:
            self.text.init_weights(generator)
            bound = self.visual_proj.in_features**-0.5
            self.visual_proj.weight.uniform_(-bound, bound, generator=generator)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures, deterministic: (B, 3, H, W) floats, nominally in [0, 1] -> (B, C, H/p, W/p).

        Raises:
            ValueError: not a float picture batch, or sides that are no multiple of the patch.
        """
        return self.encoder.latents(self._features(pixels), *self._grid(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents: (B, C, h, w) -> (B, 3, h * p, w * p), nominally in [0, 1]; clamping is the caller's.

        Raises:
            ValueError: another number of channels than the tokenizer's.
        """
        channels = self.options.encoder.latent_channels
        if latents.dim() != 4 or latents.shape[1] != channels:
            raise ValueError(f"latents of shape {tuple(latents.shape)}; expected (B, {channels}, h, w).")
        return denormalize(self.decoder(latents))

    def features(self, pixels: Tensor, bottleneck: bool = False) -> Features:
        """Class token (B, D) and patches (B, N, D) after the last norm; `bottleneck=True`: through the bottleneck, (…, C)."""
        features = self._features(pixels)
        if not bottleneck:
            return features
        return Features(self.encoder.bottleneck(features.cls), self.encoder.bottleneck(features.patches))

    def encode_image(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """Contrastive feature of pictures (B, T), of unit length if `normalize`.

        Raises:
            ValueError: the tokenizer was trained without captions.
        """
        return self.project(self._features(pixels), normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Contrastive feature of caption ids: (B, L) int64 -> (B, T), of unit length if `normalize`."""
        self._needs_text()
        feature = self.text(tokens)
        return F.normalize(feature, dim=-1) if normalize else feature

    def logits(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Similarity of every picture to every caption, times exp(logit_scale): (B, captions)."""
        return self.logit_scale.exp() * self.encode_image(pixels) @ self.encode_text(tokens).T

    def project(self, features: Features, normalize: bool = True) -> Tensor:
        """The contrastive head on features already computed: (B, T)."""
        self._needs_text()
        feature = features.cls if self.options.clip_feature == "cls" else features.patches.mean(1)
        if self.options.bottleneck_for_all:
            feature = self.encoder.bottleneck(feature)
        feature = self.visual_proj(feature)
        return F.normalize(feature, dim=-1) if normalize else feature

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VisualTokenizer:
        """Read a tokenizer in the published layout, this project's or the authors', in eval mode on the CPU.

        Raises:
            ValueError: a missing or truncated file, missing or extra tensors, an unsupported configuration; each by name.
        """
        folder = Path(folder)
        model = cls(from_config(artifacts.load_json(folder / "config.json")))
        tensors = {from_official(k): v for k, v in artifacts.load_tensors(folder / "model.safetensors").items()}
        extra = folder / "vtp_extra.safetensors"
        if extra.exists():
            tensors |= {from_official(k): v for k, v in artifacts.load_tensors(extra).items()}
        expected = model.state_dict()
        missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
        missing = [name for name in missing if not name.endswith("rope_embed.periods")]
        if missing or unknown:
            raise ValueError(f"{folder}: tensors missing: {missing or 'none'}; not known: {unknown or 'none'}.")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(f"{folder}: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}.")
        model.load_state_dict(tensors, strict=False)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors in the published layout (and vtp_extra.safetensors for our additions)."""
        folder.mkdir(parents=True, exist_ok=True)
        if odd := misread(self.options):
            log.warning("the published inference code would decode this tokenizer wrongly: %s", "; ".join(odd))
        tensors = {to_official(name): tensor for name, tensor in self.state_dict().items()}
        extra = {name: tensors.pop(name) for name in list(tensors) if "storage_tokens" in name}
        artifacts.save_json(folder / "config.json", to_config(self.options))
        artifacts.save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        if extra:
            artifacts.save_tensors(folder / "vtp_extra.safetensors", extra)

    def _features(self, pixels: Tensor) -> Features:
        self._grid(pixels)
        return self.encoder(normalize(pixels))

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pictures of shape {tuple(pixels.shape)}; expected (B, 3, H, W).")
        if not pixels.is_floating_point():
            raise ValueError(f"pictures of dtype {pixels.dtype}; expected floats in [0, 1] (for uint8: `pixels / 255`).")
        patch = self.options.encoder.patch
        h, w = pixels.shape[-2:]
        if h % patch or w % patch:
            raise ValueError(f"pictures of {h} x {w} pixels; both sides must be multiples of the patch, {patch}.")
        return h // patch, w // patch

    def _needs_text(self) -> None:
        if self.options.text is None:
            raise ValueError("this tokenizer was trained without captions: it has no text tower and no contrastive head.")
