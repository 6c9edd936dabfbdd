"""A class token that is asked for alone is the one that comes with the patches, and so are its gradients."""

from __future__ import annotations

import pytest
import torch

from vtp.models.blocks import BlockOptions
from vtp.models.encoder import Encoder, EncoderOptions
from vtp.seeding import generator


@pytest.mark.parametrize(("registers", "qk_norm"), [(0, True), (2, False)])
def test_the_class_token_alone_is_the_same(registers, qk_norm):
    block = BlockOptions(32, 2, 4.0, "swiglu", "rmsnorm", qk_norm, 0.1, "float32")
    encoder = Encoder(EncoderOptions(8, 2, 32, registers, block))
    encoder.init_weights(generator(0, "encoder"))
    images = torch.randn(3, 3, 32, 24, generator=generator(0, "images"))
    keep = 2.0 * (torch.rand(3, 2, 2, generator=generator(0, "keep")) < 0.5)
    found = []
    for patches in (True, False):
        encoder.zero_grad()
        features = encoder(images, keep=keep, patches=patches)
        assert features.patches.shape == (3, 12 if patches else 0, 32)
        features.cls.square().sum().backward()
        found.append([features.cls.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for whole, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)
