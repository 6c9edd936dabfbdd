"""The published file format: its configuration keys and parameter names beside ours.

A tokenizer on disk is `config.json` (`model_type: vtp`) and `model.safetensors`. What only this project has (registers, the
dtype RoPE is applied in) lies under `open_vtp` in the configuration and in `vtp_extra.safetensors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtp.models.blocks import BlockOptions
from vtp.models.decoder import DecoderOptions
from vtp.models.encoder import EncoderOptions
from vtp.models.text import TextOptions

PREFIXES = {"trunk.": "encoder.", "pixel_decoder.": "decoder."}
TOP_LEVEL = ("visual_proj.", "logit_scale")
FIXED = {
    "architectures": ["VTPModel"],
    "model_type": "vtp",
    "dtype": "float32",
    "init_logit_scale": None,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
    "text_embed_cls": False,
    "text_ls_init_value": None,
    "text_mlp_ratio": 4.0,
    "text_no_causal_mask": False,
    "text_output_tokens": False,
    "text_pad_id": 0,
    "text_pool_type": "argmax",
    "text_proj_bias": False,
    "text_proj_type": "linear",
    "text_quick_gelu": False,
}


@dataclass(frozen=True)
class TokenizerOptions:
    """Everything that shapes a visual tokenizer.

    Attributes:
        image_size: side in pixels it was trained at; the networks take any multiple of the patch.
        text: None for a tokenizer trained without captions.
        clip_feature: what the contrastive head reads: `cls` or `pooled`, the mean of the patches.
        bottleneck_for_all: True: the contrastive and self-distillation heads read the C latent channels too.
    """

    image_size: int
    encoder: EncoderOptions
    decoder: DecoderOptions
    text: TextOptions | None
    clip_feature: str
    bottleneck_for_all: bool


def to_config(options: TokenizerOptions) -> dict[str, Any]:
    """The published configuration keys of `options`."""
    encoder, decoder, text = options.encoder, options.decoder, options.text
    return FIXED | {
        "image_size": options.image_size,
        "train_clip": text is not None,
        "train_reconstruction": True,
        "vision_patch_size": encoder.patch,
        "vision_embed_dim": encoder.block.width,
        "vision_depth": encoder.depth,
        "vision_num_heads": encoder.block.heads,
        "vision_mlp_ratio": encoder.block.mlp_ratio,
        "vision_ffn_layer": encoder.block.ffn,
        "vision_norm_layer": encoder.block.norm,
        "vision_init_values": encoder.block.layer_scale or None,
        "vision_use_qk_norm": encoder.block.qk_norm,
        "vision_feature_bottleneck": encoder.latent_channels,
        "vision_bottleneck_ae_only": not options.bottleneck_for_all,
        "vision_clip_feat": options.clip_feature,
        "text_context_length": text.context_length if text else 77,
        "text_vocab_size": text.vocabulary if text else 49408,
        "text_embed_dim": text.width if text else 768,
        "text_num_heads": text.heads if text else 12,
        "text_depth": text.depth if text else 12,
        "decoder_embed_dim": decoder.block.width,
        "decoder_depth": decoder.depth,
        "decoder_num_heads": decoder.block.heads,
        "decoder_ffn_layer": decoder.block.ffn,
        "decoder_norm_layer": decoder.block.norm,
        "decoder_init_values": decoder.block.layer_scale or None,
        "decoder_use_qk_norm": decoder.block.qk_norm,
        "open_vtp": {"rope": encoder.block.rope, "registers": encoder.registers},
    }


def from_config(config: dict[str, Any]) -> TokenizerOptions:
    """Options from a published or an own `config.json`.

    Raises:
        ValueError: another model type, a missing key, or a value that this project does not build, named.
    """
    if config.get("model_type") != "vtp":
        raise ValueError(f"model_type={config.get('model_type')!r} is not a visual tokenizer; expected 'vtp'.")
    ours = config.get("open_vtp", {"rope": "bfloat16", "registers": 0})
    for key, value in FIXED.items():
        if key not in ("architectures", "dtype") and config.get(key, value) != value:
            raise ValueError(f"{key}={config[key]!r} is not supported; only {value!r} is.")
    if not config["train_reconstruction"]:
        raise ValueError("train_reconstruction=false: a tokenizer without a decoder is not supported.")

    def block(side: str, mlp_ratio: float) -> BlockOptions:
        return BlockOptions(
            width=config[f"{side}_embed_dim"],
            heads=config[f"{side}_num_heads"],
            mlp_ratio=mlp_ratio,
            ffn=config[f"{side}_ffn_layer"],
            norm=config[f"{side}_norm_layer"],
            qk_norm=config[f"{side}_use_qk_norm"],
            layer_scale=config[f"{side}_init_values"] or 0.0,
            rope=ours["rope"],
        )

    try:
        patch, channels = config["vision_patch_size"], config["vision_feature_bottleneck"]
        text = TextOptions(
            width=config["text_embed_dim"],
            depth=config["text_depth"],
            heads=config["text_num_heads"],
            context_length=config["text_context_length"],
            vocabulary=config["text_vocab_size"],
        )
        return TokenizerOptions(
            image_size=config["image_size"],
            encoder=EncoderOptions(
                patch, config["vision_depth"], channels, ours["registers"], block("vision", config["vision_mlp_ratio"])
            ),
            decoder=DecoderOptions(patch, config["decoder_depth"], channels, block("decoder", 4.0)),
            text=text if config["train_clip"] else None,
            clip_feature=config["vision_clip_feat"],
            bottleneck_for_all=not config["vision_bottleneck_ae_only"],
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from None


def misread(options: TokenizerOptions) -> list[str]:
    """What of a tokenizer the published inference code would read wrongly, a phrase each; this project reads all of it."""
    encoder = options.encoder
    found = []
    if encoder.patch != 16:
        found.append(f"patch={encoder.patch}, where it shuffles pixels by 16")
    if encoder.registers:
        found.append(f"registers={encoder.registers}, which it does not have")
    return found


def to_official(name: str) -> str:
    """Our parameter name as the published files spell it."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name.removeprefix("text.")


def from_official(name: str) -> str:
    """A published parameter name as our modules spell it."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name if name.startswith(TOP_LEVEL) else "text." + name
