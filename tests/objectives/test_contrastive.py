from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtp.objectives.contrastive import clip_loss, siglip_loss
from vtp.seeding import generator


def pairs(count: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    g = generator(0, "contrastive")
    image, text = (F.normalize(torch.randn(count, width, generator=g), dim=-1) for _ in range(2))
    return image, text


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


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
def test_siglip_in_pieces_is_the_same_number_and_gradient(chunk: int) -> None:
    found = []
    for size in (None, chunk):
        given = [value.clone().requires_grad_() for value in (*pairs(), torch.tensor(4.0), torch.tensor(-2.0))]
        loss = siglip_loss(*given, chunk=size)
        found.append([loss.detach(), *torch.autograd.grad(loss, given)])
    for piecewise, whole in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(piecewise, whole, atol=1e-6, rtol=1e-6)


def test_autocast_does_not_reach_the_logits() -> None:
    image, text = pairs()
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    expected = clip_loss(image, text, scale), siglip_loss(image, text, scale, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = clip_loss(image, text, scale), siglip_loss(image, text, scale, bias)
    assert actual == expected
    assert clip_loss(image.bfloat16(), text.bfloat16(), scale).dtype == torch.float32
