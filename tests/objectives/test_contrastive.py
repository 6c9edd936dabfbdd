from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vtp.objectives.contrastive import clip_loss, siglip_loss
from vtp.seeding import generator

ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "clip_loss" / "io.safetensors")


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def pairs(count: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    g = generator(0, "contrastive")
    image, text = (F.normalize(torch.randn(count, width, generator=g), dim=-1) for _ in range(2))
    return image, text


def oracle_inputs() -> list[Tensor]:
    return leaves(ORACLE["image"], ORACLE["text"], ORACLE["log_logit_scale"].exp(), ORACLE["logit_bias"])


@pytest.mark.parametrize(("name", "with_bias"), [("clip", False), ("clip_bias", True), ("siglip", True)])
def test_values_and_gradients_are_openclips(name: str, with_bias: bool) -> None:
    image, text, scale, bias = oracle_inputs()
    loss_of = siglip_loss if name == "siglip" else clip_loss
    loss = loss_of(image, text, scale, bias) if with_bias else clip_loss(image, text, scale)
    loss.backward()
    torch.testing.assert_close(loss, ORACLE[f"single.{name}.loss"], atol=1e-5, rtol=1e-5)
    for key, leaf in {"image": image, "text": text, "scale": scale, **({"bias": bias} if with_bias else {})}.items():
        torch.testing.assert_close(leaf.grad, ORACLE[f"single.{name}.grad_{key}"], atol=1e-5, rtol=1e-5)


def test_clip_is_its_naive_loop() -> None:
    image, text = pairs()
    scale, loss = 4.0, 0.0
    logits = [[scale * float(i @ t) for t in text] for i in image]
    for i in range(5):
        row = torch.tensor(logits[i]).logsumexp(0) - logits[i][i]
        column = torch.tensor([logits[j][i] for j in range(5)]).logsumexp(0) - logits[i][i]
        loss += float(row + column) / 10
    assert clip_loss(image, text, torch.tensor(scale)).item() == pytest.approx(loss, abs=1e-5)


def test_siglip_is_its_naive_loop() -> None:
    image, text = pairs()
    scale, bias, loss = 4.0, -2.0, 0.0
    for i in range(5):
        for j in range(5):
            logit = scale * image[i] @ text[j] + bias
            loss -= float(F.logsigmoid(logit if i == j else -logit)) / 5
    assert siglip_loss(image, text, torch.tensor(scale), torch.tensor(bias)).item() == pytest.approx(loss, abs=1e-5)


def test_autocast_does_not_reach_the_logits() -> None:
    image, text = pairs()
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    expected = clip_loss(image, text, scale), siglip_loss(image, text, scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = clip_loss(image, text, scale), siglip_loss(image, text, scale, bias)
    assert actual == expected
    assert clip_loss(image.bfloat16(), text.bfloat16(), scale).dtype == torch.float32
