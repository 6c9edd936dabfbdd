"""The published configuration: defaults, what is refused, and every option as a model that can be saved and read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp import VisualTokenizer
from vtp.models.blocks import Rope
from vtp.models.official import KEYS, from_config, to_config
from vtp.models.options import misread
from vtp.models.text import TextOptions, TextTower
from vtp.seeding import generator

SMALL: dict[str, Any] = {
    "model_type": "vtp",
    "image_size": 32,
    "vision_embed_dim": 24,
    "vision_depth": 2,
    "vision_num_heads": 3,
    "vision_feature_bottleneck": 6,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "text_embed_dim": 8,
    "text_depth": 2,
    "text_num_heads": 2,
    "text_context_length": 5,
    "text_vocab_size": 11,
}
TOKENS = torch.tensor([[9, 3, 10, 0, 0], [9, 10, 0, 0, 0], [9, 1, 2, 3, 10]])


def built(**changes: Any) -> VisualTokenizer:
    model = VisualTokenizer(from_config(SMALL | changes))
    model.init_weights(generator(0, "test"))
    return model.eval().requires_grad_(False)


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


OPTIONS: list[dict[str, Any]] = [
    *({"vision_ffn_layer": kind, "decoder_ffn_layer": kind} for kind in ("mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128")),
    *({"vision_norm_layer": kind, "decoder_norm_layer": kind} for kind in ("rmsnorm", "layernorm", "layernormbf16")),
    {"vision_use_qk_norm": True, "decoder_use_qk_norm": True},
    {"vision_init_values": 1e-5, "decoder_init_values": 0.5},
    {"vision_init_values": 0, "decoder_init_values": 0.0},
    {"vision_mlp_ratio": 2.5},
    {"vision_clip_feat": "pooled"},
    {"vision_bottleneck_ae_only": False},
    {"vision_bottleneck_ae_only": False, "vision_clip_feat": "pooled", "vision_feature_bottleneck": 30},
    {"vision_feature_bottleneck": 24},
    {"vision_feature_bottleneck": 24, "vision_bottleneck_ae_only": False},
    {"vision_patch_size": 8},
    {"init_logit_bias": -10.0, "init_logit_scale": 2.3},
    {"init_logit_bias": 0.0, "nonscalar_logit_scale": True},
    {"text_ls_init_value": 0.1, "text_mlp_ratio": 2.0, "text_quick_gelu": True, "text_no_causal_mask": True},
    *({"text_pool_type": kind} for kind in ("argmax", "first", "last", "none")),
    {"text_proj_type": "none"},
    {"text_proj_bias": True},
    {"text_pad_id": 3, "text_output_tokens": True},
    {"train_clip": False},
    {"train_reconstruction": False},
    {"train_clip": False, "train_reconstruction": False},
    {"open_vtp": {"rope": "float32", "registers": 2}},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
@torch.no_grad()
def test_every_option_is_built_saved_and_read_to_the_last_bit(changes, tmp_path):
    model = built(**changes)
    model.save_pretrained(tmp_path / "a")
    again = VisualTokenizer.from_pretrained(tmp_path / "a")
    assert again.options == model.options
    again.save_pretrained(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    config = to_config(again.options)
    for name, value in changes.items():
        if name in KEYS:
            assert config[name] == (value or None if name in ("vision_init_values", "decoder_init_values") else value)
    patch, channels = model.options.encoder.patch, model.options.encoder.latent_channels
    pixels = pictures(4 * patch, 2 * patch)
    latents = again.encode(pixels)
    assert latents.shape == (2, channels, 4, 2)
    assert torch.equal(latents, model.encode(pixels))
    if model.options.decoder:
        assert again.decode(latents).shape == pixels.shape
    if model.options.text:
        assert torch.equal(again.encode_text(TOKENS), model.encode_text(TOKENS))
        assert again.encode_image(pixels).shape == (2, 8)


def test_absent_keys_have_the_published_defaults():
    with torch.device("meta"):
        base = VisualTokenizer(from_config({"model_type": "vtp"}))
        wide = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
        large = {f"{side}_{key}": value for side in ("vision", "decoder") for key, value in wide.items()}
        large_model = VisualTokenizer(from_config({"model_type": "vtp", **large}))
    millions = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in (("b", base), ("l", large_model))}
    assert millions == pytest.approx({"b": 295.64, "l": 731.57}, abs=0.005)  # of the published models
    assert len(large_model.state_dict()) == 789


def test_options_and_configuration_are_the_same_thing():
    for changes in OPTIONS:
        options = from_config(SMALL | changes)
        assert from_config(to_config(options)) == options


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_dept": 2, "text_lenght": 3}, ["vision_dept is not known", "text_lenght is not known"]),
        (
            {"vision_ffn_layer": "gelu", "image_size": "256"},
            ["vision_ffn_layer='gelu' must be one of", "image_size='256' must be"],
        ),
        ({"vision_depth": 0}, ["vision_depth=0 must be a whole number above 0"]),
        ({"vision_depth": True}, ["vision_depth=True"]),
        (
            {"vision_init_values": float("nan"), "init_logit_scale": float("inf")},
            ["vision_init_values=nan must be a number or null", "init_logit_scale=inf must be"],
        ),
        ({"text_pool_type": "mean"}, ["text_pool_type='mean' must be one of argmax, last, first, none"]),
        ({"text_embed_cls": True}, ["text_embed_cls=True must be false"]),
        ({"vision_num_heads": 5}, ["vision_embed_dim=24 does not divide by 20 for vision_num_heads=5"]),
        ({"decoder_num_heads": 8}, ["decoder_embed_dim=16 does not divide by 32"]),
        ({"text_num_heads": 3}, ["text_embed_dim=8 does not divide by 3"]),
        (
            {"open_vtp": {"rope": "float16", "depth": 1}},
            ["open_vtp.depth is not known", "open_vtp.rope='float16' must be one of"],
        ),
        ({"open_vtp": 3}, ["open_vtp=3 must be a table"]),
        ({"model_type": "clip"}, ["model_type='clip' is not a visual tokenizer"]),
        ({"model_type": None}, ["model_type=None"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_listed(changes, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the words are compared below)
        from_config(SMALL | changes)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_hugging_face_writes_beside_the_options_is_no_option():
    extra = {
        "architectures": ["VTPModel"],
        "torch_dtype": "float32",
        "transformers_version": "5",
        "auto_map": {},
        "_name_or_path": "",
    }
    assert from_config(SMALL | extra) == from_config(SMALL)


def test_a_published_configuration_gets_no_key_of_ours():
    assert to_config(from_config(SMALL)).keys() == KEYS.keys() | {"architectures", "model_type", "dtype"}
    assert to_config(from_config(SMALL | {"open_vtp": {"registers": 1}}))["open_vtp"] == {"rope": "bfloat16", "registers": 1}


def test_periods_are_the_ones_that_published_files_store():
    stored = [1, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5, 10, 13.3125, 17.75, 23.75, 31.625, 42.25, 56.25, 75]
    periods = Rope(64, "bfloat16").periods
    assert periods.dtype == torch.bfloat16
    assert periods.tolist() == stored


def test_what_the_published_code_would_misread():
    assert misread(from_config(SMALL)) == []
    odd = from_config(SMALL | {"vision_patch_size": 8, "open_vtp": {"registers": 2}})
    assert len(misread(odd)) == 2
    assert len(misread(replace(odd, decoder=None))) == 1


# the text tower, by torch's own attention


class Naive(nn.Module):
    """CLIP's text tower as open_clip writes it: torch's MultiheadAttention and an additive mask."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        tower, o = self.tower, self.tower.options
        x = tower.token_embedding(tokens) + tower.positional_embedding
        mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1) if o.causal else None
        for block in tower.text_transformer.resblocks:
            attention = nn.MultiheadAttention(o.width, o.heads, batch_first=True)
            attention.load_state_dict(block.attn.state_dict())
            y = block.ln_1(x)
            y = attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            x = x + (y if o.layer_scale is None else y * block.ls_1.gamma)
            y = block.mlp.c_fc(block.ln_2(x))
            y = y * torch.sigmoid(1.702 * y) if o.quick_gelu else F.gelu(y)
            y = block.mlp.c_proj(y)
            x = x + (y if o.layer_scale is None else y * block.ls_2.gamma)
        x = tower.ln_final(x)
        places = {"argmax": tokens.argmax(1), "first": torch.zeros(len(x)), "last": torch.full((len(x),), tokens.shape[1] - 1)}
        if o.pool != "none":
            x = torch.stack([row[int(i)] for row, i in zip(x, places[o.pool], strict=True)])
        if not o.projection:
            return x
        return tower.text_projection(x) if o.projection_bias else x @ tower.text_projection


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": False},
        {"pool": "first"},
        {"pool": "last", "projection": False},
        {"pool": "none", "projection_bias": True},
        {"quick_gelu": True, "mlp_ratio": 1.5, "layer_scale": 0.3},
    ],
    ids=str,
)
@torch.no_grad()
def test_the_text_tower_is_its_naive_form(changes):
    tower = TextTower(replace(TextOptions(8, 2, 2, 5, 11), **changes))
    tower.init_weights(generator(0, "tower"))
    for block in tower.blocks:
        block.attn.in_proj_bias.uniform_(-1, 1, generator=generator(0, "bias"))
    torch.testing.assert_close(tower(TOKENS), Naive(tower)(TOKENS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_logits_are_scaled_and_shifted():
    model = built(init_logit_bias=-3.0, init_logit_scale=1.5, nonscalar_logit_scale=True)
    pixels = pictures(32, 48)
    image, text = model.encode_image(pixels), model.encode_text(TOKENS)
    torch.testing.assert_close(model.logits(pixels, TOKENS), torch.tensor(1.5).exp() * image @ text.T - 3)
    assert model.logit_scale.shape == (1,)
    # A configured 0 counts as none, as in the published code.
    assert built(init_logit_scale=0.0).logit_scale.item() == pytest.approx(2.6593, abs=1e-4)


@torch.no_grad()
def test_parts_that_are_not_there_are_named():
    bare, pixels = built(train_clip=False, train_reconstruction=False), pictures(32, 32)
    assert bare.features(pixels, bottleneck=True).patches.shape == (2, 4, 6)
    for use, words in (
        (lambda: bare.decode(torch.zeros(1, 6, 2, 2)), "no decoder"),
        (lambda: bare.encode_image(pixels), "without captions"),
        (lambda: bare.encode_text(TOKENS), "without captions"),
        (lambda: bare.logits(pixels, TOKENS), "without captions"),
        (lambda: built(text_pool_type="none").logits(pixels, TOKENS), "text_pool_type=none"),
    ):
        with pytest.raises(ValueError, match=words):
            use()


@torch.no_grad()
def test_intermediate_features_by_count_and_by_number():
    model, pixels = built(vision_depth=3), pictures(32, 16)
    all_of_them = model.intermediate_features(pixels, [2, 0, 1])
    assert len(all_of_them) == 3
    last = model.features(pixels)
    assert torch.equal(all_of_them[2].cls, last.cls)
    assert torch.equal(all_of_them[2].patches, last.patches)
    assert torch.equal(model.intermediate_features(pixels, 2)[0].patches, all_of_them[1].patches)
    raw = model.intermediate_features(pixels, [0], normalize=False)[0]
    torch.testing.assert_close(model.encoder.norm(raw.cls), all_of_them[0].cls)
    for layers in (0, 4, [3], [-1], []):
        with pytest.raises(ValueError, match="3 blocks"):
            model.intermediate_features(pixels, layers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_pictures_and_latents_of_other_floats_are_taken(dtype):
    model = built()
    pixels = pictures(32, 32).to(dtype)
    assert model.encode(pixels).dtype == torch.float32
    assert model.decode(model.encode(pixels).to(dtype)).dtype == torch.float32


@torch.no_grad()
def test_a_tokenizer_in_bfloat16_takes_float32_pictures():
    model, pixels = built().to(torch.bfloat16), pictures(32, 32)
    latents = model.encode(pixels)
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents.float(), built().encode(pixels), atol=0.1, rtol=0)
    assert model.decode(latents).isfinite().all()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), r"caption ids of shape \(2, 4\)"),
        (torch.zeros(5, dtype=torch.int64), r"caption ids of shape \(5,\)"),
        (torch.zeros(2, 5), "dtype torch.float32"),
        (torch.full((1, 5), 11), "caption id 11 is none of this tokenizer's 11"),
        (torch.tensor([[9, -1, 10, 0, 0]]), "caption id -1 is none of this tokenizer's 11"),
    ],
)
def test_wrong_caption_ids_are_refused_by_name(tokens, words):
    with pytest.raises(ValueError, match=words):
        built().encode_text(tokens)
