"""One joint training step of the published model: student, teacher, heads, losses, gradients and the averaged teacher."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.objectives.scores import centred_targets
from tests.oracles.conftest import FLOAT32, FOLDER, Compare, Tolerance, bfloat16_rope, names
from vtp.models.blocks import BlockOptions
from vtp.models.decoder import DecoderOptions
from vtp.models.encoder import Encoder, EncoderOptions
from vtp.models.heads import DinoHead
from vtp.models.options import TokenizerOptions
from vtp.models.text import TextOptions
from vtp.models.tokenizer import VisualTokenizer
from vtp.objectives.contrastive import clip_loss
from vtp.objectives.distillation import dino_global_loss, dino_local_loss, ibot_loss, koleo_loss
from vtp.objectives.reconstruction import l1_loss
from vtp.tasks.base import Average

IO = load_file(FOLDER / "vtp_ssl" / "io.safetensors")
WEIGHTS = load_file(FOLDER / "vtp_ssl" / "weights.safetensors")
CONFIG = json.loads((FOLDER / "vtp_ssl" / "config.json").read_text())
SIZES, SHAPE = CONFIG["oracle"], CONFIG["model"]["vtp_model"]
INPUTS = {"global_crops", "local_crops", "masks", "mask_indices", "masks_weight", "upperbound", "n_masked", "tokens"}
INPUTS |= {"dino_center", "ibot_center"}
LEGACY = {"trunk.": "encoder.", "pixel_decoder.": "decoder.", "proj.": "visual_proj.", "transformer.": "text.text_transformer."}
TEXT = ("token_embedding", "positional_embedding", "ln_final", "text_projection")
"""Names of the training model's student, which differ from the released ones."""


def ours(name: str) -> str:
    for theirs, mine in LEGACY.items():
        if name.startswith(theirs):
            return mine + name.removeprefix(theirs)
    return f"text.{name}" if name.startswith(TEXT) else name


def part(prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in WEIGHTS.items() if name.startswith(prefix)}


def student() -> VisualTokenizer:
    vision, text, paint = (SHAPE[name] for name in ("vision_encoder", "text_encoder", "pixel_decoder"))

    def block(given: dict, ratio: float, norm: str, scale: float | None) -> BlockOptions:
        return BlockOptions(
            given["embed_dim"],
            given["num_heads"],
            ratio,
            given["ffn_layer"],
            given[norm],
            given["use_qk_norm"],
            scale or 0.0,
            "bfloat16",
        )

    channels, patch = vision["vit_feature_bottleneck"], vision["patch_size"]
    reads = block(vision, vision["mlp_ratio"], "norm_type", vision["init_values"])
    paints = block(paint, 4.0, "norm_layer", paint["layerscale_init"])
    options = TokenizerOptions(
        image_size=CONFIG["model"]["data"]["image_size"],
        encoder=EncoderOptions(patch, vision["depth"], channels, 0, reads),
        decoder=DecoderOptions(patch, paint["depth"], channels, paints),
        text=TextOptions(text["embed_dim"], text["layers"], text["heads"], text["context_length"], text["vocab_size"]),
        clip_feature=vision["clip_feat"],
        bottleneck_for_all=not vision["bottleneck_ae_only"],
    )
    model = VisualTokenizer(options)
    others = ("teacher_", "dino_head.", "attn_mask")
    model.load_state_dict({ours(name): tensor for name, tensor in WEIGHTS.items() if not name.startswith(others)})
    return model


def head(prefix: str) -> DinoHead:
    form = SHAPE["dino_head"]
    made = DinoHead(
        SIZES["vision_dim"],
        hidden=form["hidden_dim"],
        bottleneck=form["bottleneck_dim"],
        prototypes=form["out_dim"],
        layers=form["nlayers"],
    )
    made.load_state_dict(part(prefix))
    return made


@cache
def step() -> dict[str, Tensor]:
    """Everything the oracle holds but its inputs, by name."""
    model, heads = student(), head("dino_head.")
    teacher, teacher_heads = Encoder(model.options.encoder), head("teacher_dino_head.")
    teacher.load_state_dict(part("teacher_trunk."))
    crops, small, masks, hidden = IO["global_crops"], IO["local_crops"], IO["masks"], IO["mask_indices"]
    made: dict[str, Tensor] = {}

    with torch.no_grad():
        seen = teacher(crops)
        cls = teacher_heads(seen.cls)
        first, second = cls.chunk(2)
        made["teacher.teacher_cls_tokens_after_head"] = swapped = torch.cat([second, first])
        patches = teacher_heads(seen.patches.flatten(0, 1)[hidden])
        made["teacher.masked_teacher_patch_tokens_after_head"] = patches
        temperature = SIZES["teacher_temp"]
        made["targets.dino"] = centred_targets(swapped, IO["dino_center"].flatten(), temperature).view(2, SIZES["batch"], -1)
        made["targets.ibot"] = centred_targets(patches, IO["ibot_center"].flatten(), temperature)

    features, local = model.encoder(crops, masks), model.encoder(small)
    made["student.student_global_cls_tokens"] = features.cls
    made["student.student_global_cls_tokens_after_head"] = whole = heads(features.cls)
    made["student.student_local_cls_tokens_after_head"] = pieces = heads(local.cls)
    guesses = heads(features.patches.flatten(0, 1)[hidden])
    made["student.student_global_masked_patch_tokens_after_head"] = guesses

    image, text = model.project(model.encoder(crops)), model.encode_text(IO["tokens"])
    made |= {"clip.image_features": image, "clip.text_features": text, "clip.logit_scale_exp": model.logit_scale.exp()}
    side = SIZES["global_size"] // model.options.encoder.patch
    made["rec.reconstructed"] = model.decoder(model.encoder.latents(model.encoder(crops), side, side))

    targets, student_temp = made["targets.dino"], SIZES["student_temp"]
    made["loss.dino_local"] = dino_local_loss(pieces, targets, student_temp)
    # Stored in the order of the student's views; the loss swaps them itself.
    made["loss.dino_global"] = dino_global_loss(whole, targets.flip(0), student_temp, num_local=SIZES["n_local"])
    made["loss.koleo"] = SIZES["koleo"] * sum((koleo_loss(view) for view in features.cls.chunk(2)), torch.zeros(()))
    made["loss.ibot"] = ibot_loss(guesses, made["targets.ibot"], IO["masks_weight"], len(masks), student_temp)
    made["loss.ssl"] = made["loss.dino_local"] + made["loss.dino_global"] + made["loss.koleo"] + made["loss.ibot"]
    made["loss.clip"] = clip_loss(image, text, model.logit_scale.exp())
    made["loss.l1"] = l1_loss(made["rec.reconstructed"], crops)
    made["loss.total"] = made["loss.ssl"] + made["loss.clip"] + 0.1 * made["loss.l1"]
    made["loss.total"].backward()
    parameters = {**dict(model.named_parameters()), **{f"dino_head.{n}": p for n, p in heads.named_parameters()}}
    for name in IO:
        if name.startswith("grad."):
            gradient = parameters[ours(name.removeprefix("grad."))].grad
            assert gradient is not None
            made[name] = gradient
    made |= averaged(model, heads, teacher, teacher_heads)
    return {name: tensor.detach() for name, tensor in made.items()}


def averaged(model: VisualTokenizer, heads: DinoHead, teacher: Encoder, teacher_heads: DinoHead) -> dict[str, Tensor]:
    """The teacher after its average with the student, as the engine takes it."""
    from vtp.engine.loop import average

    # The published code keeps a teacher of the contrastive projection too, which nothing reads; there is none here.
    projection = torch.nn.Linear(*reversed(WEIGHTS["teacher_proj.weight"].shape), bias=False)
    projection.load_state_dict(part("teacher_proj."))
    pairs = ((teacher, model.encoder), (teacher_heads, heads), (projection, model.visual_proj))
    for ours_, theirs in pairs:
        average(Average(ours_.requires_grad_(False), theirs, lambda step: SIZES["momentum"]), 0)
    found = {f"ema.teacher_trunk.{name}": tensor for name, tensor in teacher.named_parameters()}
    found |= {f"ema.teacher_dino_head.{name}": tensor for name, tensor in teacher_heads.named_parameters()}
    found |= {f"ema.teacher_proj.{name}": tensor for name, tensor in projection.named_parameters()}
    del found["ema.teacher_trunk.patch_embed.proj.weight"]  # not stored
    return found


def tolerance(name: str) -> Tolerance:
    return FLOAT32 if name.startswith("ema.") or name in ("clip.text_features", "clip.logit_scale_exp") else bfloat16_rope()


@pytest.mark.parametrize("name", [name for name in names("vtp_ssl") if name not in INPUTS])
def test_joint_step(compare: Compare, name: str) -> None:
    found, expected = step()[name], IO[name]
    assert math.prod(found.shape) == expected.numel()
    compare("vtp_ssl", name, found.view_as(expected), expected, tolerance(name))


def test_nothing_stored_is_left_out() -> None:
    assert step().keys() == IO.keys() - INPUTS
