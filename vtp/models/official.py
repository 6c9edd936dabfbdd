"""The published configuration: its keys and what they may hold, and its parameter names beside ours.

A tokenizer on disk is `config.json` (`model_type: vtp`) and `model.safetensors`. What only this project has (registers, the
dtype RoPE is applied in) lies under `open_vtp` in the configuration and in `vtp_extra.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vtp.models.blocks import BlockOptions
from vtp.models.decoder import DecoderOptions
from vtp.models.encoder import EncoderOptions
from vtp.models.options import ROPE_DTYPES, LogitOptions, TokenizerOptions
from vtp.models.text import TextOptions

PREFIXES = {"trunk.": "encoder.", "pixel_decoder.": "decoder."}
TOP_LEVEL = ("visual_proj.", "logit_scale", "logit_bias")


@dataclass(frozen=True)
class Key:
    """One key of the published configuration: what it is when absent, and what it may be."""

    default: Any
    allowed: str
    holds: Callable[[Any], bool]


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(default: int) -> Key:
    return Key(default, "a whole number above 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0)


def _flag(default: bool) -> Key:
    return Key(default, "true or false", lambda v: isinstance(v, bool))


def _ratio(default: float) -> Key:
    return Key(default, "a number above 0", lambda v: _real(v) and v > 0)


def _maybe() -> Key:
    return Key(None, "a number or null", lambda v: v is None or _real(v))


def _one_of(default: str, *others: str) -> Key:
    return Key(default, f"one of {', '.join((default, *others))}", lambda v: v in (default, *others))


def _block(side: str, norm: str) -> dict[str, Key]:
    norms = ("rmsnorm", "layernorm", "layernormbf16")
    return {
        f"{side}_embed_dim": _count(768),
        f"{side}_depth": _count(12),
        f"{side}_num_heads": _count(12),
        f"{side}_ffn_layer": _one_of("swiglu", "mlp", "swiglu32", "swiglu64", "swiglu128"),
        f"{side}_norm_layer": _one_of(norm, *(other for other in norms if other != norm)),
        f"{side}_init_values": _maybe(),
        f"{side}_use_qk_norm": _flag(False),
    }


KEYS: dict[str, Key] = {
    "image_size": _count(256),
    "train_clip": _flag(True),
    "train_reconstruction": _flag(True),
    **_block("vision", "rmsnorm"),
    "vision_patch_size": _count(16),
    "vision_mlp_ratio": _ratio(4.0),
    "vision_feature_bottleneck": _count(64),
    "vision_bottleneck_ae_only": _flag(True),
    "vision_clip_feat": _one_of("cls", "pooled"),
    "text_context_length": _count(77),
    "text_vocab_size": _count(49408),
    "text_embed_dim": _count(768),
    "text_num_heads": _count(12),
    "text_depth": _count(12),
    "text_mlp_ratio": _ratio(4.0),
    "text_ls_init_value": _maybe(),
    # A class token makes the sequence longer than the published model's own table of positions.
    "text_embed_cls": Key(False, "false: a text class token does not fit the published table of positions", lambda v: v is False),
    "text_pad_id": Key(0, "a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "text_no_causal_mask": _flag(False),
    "text_pool_type": _one_of("argmax", "last", "first", "none"),
    # The published code takes everything but the word "none" for linear, null too.
    "text_proj_type": Key("linear", "linear, none (the word) or null for linear", lambda v: v in ("linear", "none", None)),
    "text_proj_bias": _flag(False),
    "text_output_tokens": _flag(False),
    "text_quick_gelu": _flag(False),
    **_block("decoder", "layernorm"),
    "init_logit_scale": _maybe(),
    "init_logit_bias": _maybe(),
    "nonscalar_logit_scale": _flag(False),
}
"""Every key that shapes the published model. The decoder's feed-forward ratio has none: it is 4."""

BOOKKEEPING = {
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "auto_map",
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_autoset",
}
"""What Hugging Face's library writes beside them; none of it changes a result."""

OURS: dict[str, Key] = {
    "rope": _one_of(*ROPE_DTYPES),
    "registers": Key(0, "a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
}


def to_config(options: TokenizerOptions) -> dict[str, Any]:
    """The published configuration of `options`, every key written out; `open_vtp` only where it says something."""
    encoder, text, logit = options.encoder, options.text, options.logit
    config: dict[str, Any] = {"architectures": ["VTPModel"], "model_type": "vtp", "dtype": "float32"}
    config |= {name: key.default for name, key in KEYS.items()}
    config |= {
        "image_size": options.image_size,
        "train_clip": text is not None,
        "train_reconstruction": options.decoder is not None,
        **_block_config("vision", encoder.block, encoder.depth),
        "vision_patch_size": encoder.patch,
        "vision_mlp_ratio": encoder.block.mlp_ratio,
        "vision_feature_bottleneck": encoder.latent_channels,
        "vision_bottleneck_ae_only": not options.bottleneck_for_all,
        "vision_clip_feat": options.clip_feature,
        "init_logit_scale": logit.scale,
        "init_logit_bias": logit.bias,
        "nonscalar_logit_scale": logit.vector,
    }
    ours = {"rope": encoder.block.rope, "registers": encoder.registers}
    if ours != _filled({}, OURS):
        config["open_vtp"] = ours
    if options.decoder is not None:
        config |= _block_config("decoder", options.decoder.block, options.decoder.depth)
    if text is not None:
        config |= {
            "text_context_length": text.context_length,
            "text_vocab_size": text.vocabulary,
            "text_embed_dim": text.width,
            "text_num_heads": text.heads,
            "text_depth": text.depth,
            "text_mlp_ratio": text.mlp_ratio,
            "text_ls_init_value": text.layer_scale,
            "text_pad_id": text.pad_id,
            "text_no_causal_mask": not text.causal,
            "text_pool_type": text.pool,
            "text_proj_type": "linear" if text.projection else "none",
            "text_proj_bias": text.projection_bias,
            "text_output_tokens": text.output_tokens,
            "text_quick_gelu": text.quick_gelu,
        }
    return config


def _block_config(side: str, block: BlockOptions, depth: int) -> dict[str, Any]:
    return {
        f"{side}_embed_dim": block.width,
        f"{side}_depth": depth,
        f"{side}_num_heads": block.heads,
        f"{side}_ffn_layer": block.ffn,
        f"{side}_norm_layer": block.norm,
        f"{side}_init_values": block.layer_scale or None,
        f"{side}_use_qk_norm": block.qk_norm,
    }


def from_config(config: Any) -> TokenizerOptions:
    """Options from a published or an own configuration; an absent key has its published default.

    RoPE is applied in bfloat16 unless the configuration says otherwise, as the published code does.

    Raises:
        ValueError: another model type; unknown keys, values that nobody builds and combinations that cannot work, all of them.
    """
    if not isinstance(config, dict) or config.get("model_type") != "vtp":
        found = config.get("model_type") if isinstance(config, dict) else config
        raise ValueError(f"model_type={found!r} is not a visual tokenizer; expected 'vtp'.")
    given = config.get("open_vtp", {})
    if not isinstance(given, dict):
        raise ValueError(f"the configuration cannot be built: open_vtp={given!r} must be a table.")
    wrong = _wrong(config, KEYS, BOOKKEEPING | {"open_vtp"}) + _wrong(given, OURS, set(), "open_vtp.")
    values, extra = _filled(config, KEYS), _filled(given, OURS)
    if wrong := wrong or _impossible(values):
        raise ValueError(f"the configuration cannot be built: {'; '.join(wrong)}.")
    patch, channels = values["vision_patch_size"], values["vision_feature_bottleneck"]

    def block(side: str, ratio: float) -> BlockOptions:
        return BlockOptions(
            width=values[f"{side}_embed_dim"],
            heads=values[f"{side}_num_heads"],
            mlp_ratio=ratio,
            ffn=values[f"{side}_ffn_layer"],
            norm=values[f"{side}_norm_layer"],
            qk_norm=values[f"{side}_use_qk_norm"],
            layer_scale=values[f"{side}_init_values"] or 0.0,
            rope=extra["rope"],
        )

    text = TextOptions(
        width=values["text_embed_dim"],
        depth=values["text_depth"],
        heads=values["text_num_heads"],
        context_length=values["text_context_length"],
        vocabulary=values["text_vocab_size"],
        mlp_ratio=values["text_mlp_ratio"],
        layer_scale=values["text_ls_init_value"],
        causal=not values["text_no_causal_mask"],
        pool=values["text_pool_type"],
        projection=values["text_proj_type"] != "none",
        projection_bias=values["text_proj_bias"],
        quick_gelu=values["text_quick_gelu"],
        pad_id=values["text_pad_id"],
        output_tokens=values["text_output_tokens"],
    )
    vision = block("vision", values["vision_mlp_ratio"])
    return TokenizerOptions(
        image_size=values["image_size"],
        encoder=EncoderOptions(patch, values["vision_depth"], channels, extra["registers"], vision),
        decoder=DecoderOptions(patch, values["decoder_depth"], channels, block("decoder", 4.0))
        if values["train_reconstruction"]
        else None,
        text=text if values["train_clip"] else None,
        clip_feature=values["vision_clip_feat"],
        bottleneck_for_all=not values["vision_bottleneck_ae_only"],
        logit=LogitOptions(values["init_logit_scale"], values["init_logit_bias"], values["nonscalar_logit_scale"]),
    )


def _filled(given: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    return {name: given.get(name, key.default) for name, key in keys.items()}


def _wrong(given: Mapping[str, Any], keys: Mapping[str, Key], others: set[str], where: str = "") -> list[str]:
    """Keys that are not known and values that are not allowed, a phrase each."""
    unknown = [f"{where}{name} is not known" for name in sorted(given.keys() - keys.keys() - others)]
    values = _filled(given, keys)
    return unknown + [f"{where}{n}={values[n]!r} must be {key.allowed}" for n, key in keys.items() if not key.holds(values[n])]


def _impossible(values: Mapping[str, Any]) -> list[str]:
    """Combinations of good values that make no model, a phrase each."""
    sides = [("vision", 4, "RoPE turns quarters of a head"), ("decoder", 4, "RoPE turns quarters of a head"), ("text", 1, "")]
    built = {"vision": True, "decoder": values["train_reconstruction"], "text": values["train_clip"]}
    wrong = []
    for side, parts, why in sides:
        width, heads = values[f"{side}_embed_dim"], values[f"{side}_num_heads"]
        if built[side] and width % (parts * heads):
            reason = f" ({why})" if why else ""
            wrong.append(f"{side}_embed_dim={width} does not divide by {parts * heads} for {side}_num_heads={heads}{reason}")
    return wrong


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
