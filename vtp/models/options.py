"""Everything that shapes a visual tokenizer, and how two of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vtp.config import DecoderParams, EncoderParams, ModelSize, TokenizerParams
from vtp.models.blocks import BlockOptions
from vtp.models.decoder import DecoderOptions
from vtp.models.encoder import EncoderOptions
from vtp.models.text import TextOptions

VOCABULARY = 49408
"""Caption ids of CLIP, which captions are tokenized to here."""

ROPE_DTYPES = ("bfloat16", "float32")
"""What RoPE can be computed and applied in."""

FREE = ("image_size", "rope", "scale", "pad_id", "output_tokens")
"""What trained weights do not depend on: nominal sizes, start values, the dtype of RoPE's table."""


@dataclass(frozen=True)
class LogitOptions:
    """How similarities are scaled: logits = exp(scale) * cosine + bias.

    Attributes:
        scale: start of the learned scale; None is ln(1 / 0.07), CLIP's.
        bias: start of the learned bias (SigLIP's is -10); None: there is none.
        vector: both are of shape (1,) in place of ().
    """

    scale: float | None = None
    bias: float | None = None
    vector: bool = False


SIGLIP = LogitOptions(scale=math.log(10), bias=-10.0)
"""Where the sigmoid loss starts (arXiv 2303.15343, section 3.2)."""


@dataclass(frozen=True)
class TokenizerOptions:
    """Everything that shapes a visual tokenizer.

    Attributes:
        image_size: side in pixels it was trained at; the networks take any multiple of the patch.
        decoder: None for an encoder that cannot paint.
        text: None for a tokenizer trained without captions.
        clip_feature: what the contrastive head reads: `cls` or `pooled`, the mean of the patches.
        bottleneck_for_all: True: the contrastive and self-distillation heads read the C latent channels too.
    """

    image_size: int
    encoder: EncoderOptions
    decoder: DecoderOptions | None
    text: TextOptions | None
    clip_feature: str
    bottleneck_for_all: bool
    logit: LogitOptions = LogitOptions()

    def with_rope(self, dtype: str) -> TokenizerOptions:
        """The same tokenizer with RoPE applied in another dtype, in both networks.

        Raises:
            ValueError: another dtype than `ROPE_DTYPES`.
        """
        if dtype not in ROPE_DTYPES:
            raise ValueError(f"rope={dtype!r} is not known; choose {' or '.join(ROPE_DTYPES)}.")
        encoder = replace(self.encoder, block=replace(self.encoder.block, rope=dtype))
        decoder = self.decoder and replace(self.decoder, block=replace(self.decoder.block, rope=dtype))
        return replace(self, encoder=encoder, decoder=decoder)


def options_of(
    size: ModelSize, form: TokenizerParams, logit: LogitOptions, *, image_size: int, context_length: int | None
) -> TokenizerOptions:
    """Options of a row of the tokenizer's ladder and what no row changes.

    Args:
        context_length: caption ids of a picture; None for a tokenizer without a text tower.
    """

    def block(width: int, heads: int, side: EncoderParams | DecoderParams) -> BlockOptions:
        return BlockOptions(width, heads, 4.0, side.ffn, side.norm, side.qk_norm, side.layer_scale, form.rope)

    encoder, decoder, text = size.encoder, size.decoder, size.text
    reads = block(encoder.width, encoder.heads, form.encoder)
    paints = block(decoder.width, decoder.heads, form.decoder)
    return TokenizerOptions(
        image_size=image_size,
        encoder=EncoderOptions(form.patch, encoder.depth, form.latent_channels, form.encoder.registers, reads),
        decoder=DecoderOptions(form.patch, decoder.depth, form.latent_channels, paints),
        text=TextOptions(text.width, text.depth, text.heads, context_length, VOCABULARY) if context_length else None,
        clip_feature=form.encoder.clip_feature,
        bottleneck_for_all=form.encoder.bottleneck_for_all,
        logit=logit,
    )


def mismatches(wanted: TokenizerOptions, given: TokenizerOptions) -> list[str]:
    """In what the weights of `given` are not those of a tokenizer of the form `wanted`, a phrase each; empty if they fit."""
    want, have = dict(_leaves(asdict(wanted))), dict(_leaves(asdict(given)))
    return [
        f"{key} ({have.get(key, 'none')}, not {want.get(key, 'none')})"
        for key in {**want, **have}
        if key.rsplit(".", 1)[-1] not in FREE and not _alike(key, want.get(key), have.get(key))
    ]


def _alike(key: str, want: Any, have: Any) -> bool:
    # Of start values only whether there is such a parameter.
    if key.endswith("block.layer_scale"):
        return bool(want) == bool(have)
    if key in ("text.layer_scale", "logit.bias"):
        return (want is None) == (have is None)
    return want == have


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def misread(options: TokenizerOptions) -> list[str]:
    """What of a tokenizer the published inference code would read wrongly, a phrase each; this project reads all of it."""
    encoder = options.encoder
    found = []
    if encoder.patch != 16 and options.decoder is not None:
        found.append(f"patch={encoder.patch}, where it shuffles pixels by 16")
    if encoder.registers:
        found.append(f"registers={encoder.registers}, which it does not have")
    return found
