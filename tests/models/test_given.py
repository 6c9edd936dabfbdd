"""Tokenizers from outside: what must fit, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.test_official import SMALL, built
from vtp import VisualTokenizer
from vtp.models.given import as_it_is, go_on_from
from vtp.models.official import from_config
from vtp.models.options import mismatches
from vtp.seeding import generator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    built().save_pretrained(tmp_path / "given")
    return tmp_path / "given"


def test_equal_forms_have_no_mismatch_whatever_their_start_values():
    forms = [
        ({}, {"image_size": 512, "init_logit_scale": 1.0, "open_vtp": {"rope": "float32"}}),
        ({"vision_init_values": 0.1}, {"vision_init_values": 1e-5}),
        ({"init_logit_bias": -10.0}, {"init_logit_bias": -1.0}),
        ({"text_ls_init_value": 0.1}, {"text_ls_init_value": 0.2, "text_pad_id": 4}),
    ]
    for wanted, given in forms:
        assert mismatches(from_config(SMALL | wanted), from_config(SMALL | given)) == []


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"vision_embed_dim": 48}, "encoder.block.width (48, not 24)"),
        ({"vision_norm_layer": "layernormbf16"}, "encoder.block.norm (layernormbf16, not rmsnorm)"),
        ({"vision_init_values": 0.1}, "encoder.block.layer_scale (0.1, not 0.0)"),
        ({"vision_patch_size": 8}, "encoder.patch (8, not 16)"),
        ({"text_context_length": 77}, "text.context_length (77, not 5)"),
        ({"train_clip": False}, "text.width (none, not 8)"),
        ({"vision_clip_feat": "pooled"}, "clip_feature (pooled, not cls)"),
        ({"init_logit_bias": 0.0}, "logit.bias (0.0, not None)"),
    ],
    ids=str,
)
def test_each_difference_is_a_phrase(given, phrase):
    assert phrase in mismatches(from_config(SMALL), from_config(SMALL | given))


def test_training_goes_on_from_the_very_weights(folder):
    model = VisualTokenizer(from_config(SMALL))
    model.init_weights(generator(1, "other"))
    go_on_from(model, folder)
    expected = built().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    other = VisualTokenizer(from_config(SMALL | {"vision_depth": 3, "text_num_heads": 4}))
    with pytest.raises(ValueError, match=r"encoder.depth \(2, not 3\), text.heads \(2, not 4\)"):
        go_on_from(other, folder)


def test_a_tokenizer_used_as_it_is_must_paint_and_divide_the_pictures(folder, tmp_path):
    assert as_it_is(folder, 64).options == from_config(SMALL)
    with pytest.raises(ValueError, match=r"data.image_size=40 is not a multiple of 16, the patch of .*given"):
        as_it_is(folder, 40)
    built(train_reconstruction=False).save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match=r"blind has no decoder"):
        as_it_is(tmp_path / "blind", 64)
