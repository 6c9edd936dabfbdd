from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtp.objectives.adversarial import (
    adaptive_weight,
    diff_augment,
    hinge_discriminator,
    hinge_generator,
    last_convolution_gradient,
    last_layer_gradient,
    lecam,
    quantise,
)
from vtp.seeding import generator

GROUPS = {
    "translation": (True, False, False),
    "color": (False, True, False),
    "cutout": (False, False, True),
    "all": (True, True, True),
}


def normal(*shape: int, key: str) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "adversarial", key))


def uniform(*shape: int, key: str) -> Tensor:
    return torch.rand(*shape, generator=generator(0, "adversarial", key))


def test_losses_on_logits_are_their_naive_loops() -> None:
    real, fake = normal(3, 4, key="real"), normal(5, 2, key="fake")  # maps of two scales need not be equally large
    ema_real, ema_fake = torch.tensor(0.4), torch.tensor(-0.3)
    hinge = sum(max(0, 1 - r) / 24 for r in real.flatten().tolist()) + sum(max(0, 1 + f) / 20 for f in fake.flatten().tolist())
    over = sum(max(0, r + 0.3) ** 2 / 12 for r in real.flatten().tolist())
    under = sum(max(0, 0.4 - f) ** 2 / 10 for f in fake.flatten().tolist())
    assert hinge_discriminator(real, fake).item() == pytest.approx(hinge, abs=1e-6)
    assert hinge_generator(fake).item() == pytest.approx(sum(-f / 10 for f in fake.flatten().tolist()), abs=1e-6)
    assert lecam(real, fake, ema_real, ema_fake).item() == pytest.approx(over + under, abs=1e-6)


def test_adaptive_weight_is_its_naive_loop_and_finite() -> None:
    reconstruction, adversarial = normal(3, 2, key="reconstruction"), normal(3, 2, key="adversarial")
    ratio = sum(v**2 for v in reconstruction.flatten().tolist()) ** 0.5 / sum(v**2 for v in adversarial.flatten().tolist()) ** 0.5
    assert adaptive_weight(reconstruction, adversarial, 1e4).item() == pytest.approx(ratio, rel=1e-4)
    assert adaptive_weight(reconstruction, torch.zeros(3, 2), 1e4).item() == 1e4
    assert adaptive_weight(torch.zeros(3, 2), torch.zeros(3, 2), 1e4).item() == 0


@pytest.mark.parametrize("convolution", [False, True])
def test_last_layer_gradient_is_autograds(convolution: bool) -> None:
    h = normal(2, 5, 3, 4, key="h") if convolution else normal(2, 3, 4, 5, key="h")
    weight = normal(6, 5, key="weight").requires_grad_()
    y = F.conv2d(h, weight[:, :, None, None]) if convolution else F.linear(h, weight)
    loss = y.tanh().square().sum()
    (outer,) = torch.autograd.grad(loss, y, retain_graph=True)
    (expected,) = torch.autograd.grad(loss, weight)
    channels = 1 if convolution else -1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = last_layer_gradient(outer, h, channels=channels)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 1)])
def test_gradient_of_a_last_convolution_is_autograds_and_its_naive_loop(kernel: tuple[int, int]) -> None:
    h, weight = normal(2, 3, 4, 5, key="h"), normal(2, 3, *kernel, key="weight").requires_grad_()
    padding = (kernel[0] // 2, kernel[1] // 2)
    y = F.conv2d(h, weight, padding=padding)
    loss = y.tanh().square().sum()
    (outer,) = torch.autograd.grad(loss, y, retain_graph=True)
    (expected,) = torch.autograd.grad(loss, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = last_convolution_gradient(outer, h, kernel=kernel)
    torch.testing.assert_close(actual.view_as(weight), expected, atol=1e-4, rtol=1e-5)
    padded, naive = F.pad(h, (padding[1], padding[1], padding[0], padding[0])), torch.zeros_like(weight)
    for picture, y_at, x_at in itertools.product(range(2), range(4), range(5)):
        for down, right in itertools.product(range(kernel[0]), range(kernel[1])):
            naive[:, :, down, right] += torch.outer(outer[picture, :, y_at, x_at], padded[picture, :, y_at + down, x_at + right])
    torch.testing.assert_close(actual.view_as(weight), naive, atol=1e-4, rtol=1e-5)


def test_last_layer_gradient_is_its_naive_loop() -> None:
    h, outer = normal(2, 3, 5, key="h"), normal(2, 3, 4, key="outer")
    gradient = torch.zeros(4, 5)
    for i in range(2):
        for p in range(3):
            gradient += torch.outer(outer[i, p], h[i, p])
    torch.testing.assert_close(last_layer_gradient(outer, h, channels=-1), gradient, atol=1e-5, rtol=1e-5)


def test_augmentation_with_nothing_enabled_is_the_identity() -> None:
    images = normal(2, 3, 16, 16, key="images")
    assert torch.equal(diff_augment(images, uniform(7, 2, 1, 1, key="u"), torch.tensor([False] * 3)), images)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", [(16, 24), (20, 12)])  # cut-outs with even and odd sides
def test_augmentation_is_its_naive_loop(group: str, size: tuple[int, int]) -> None:
    height, width = size
    images, u = normal(5, 3, height, width, key="images"), uniform(7, 5, 1, 1, key="u")
    enabled = GROUPS[group]
    augmented = diff_augment(images, u, torch.tensor(enabled))
    for i in range(5):
        expected = _naive(images[i], [float(value) for value in u[:, i].flatten()], enabled)
        torch.testing.assert_close(augmented[i], expected, atol=1e-5, rtol=0)


def _naive(image: Tensor, u: list[float], enabled: tuple[bool, bool, bool]) -> Tensor:
    _, height, width = image.shape
    if enabled[0]:
        down, right = (int(u[k] * (2 * round(side / 8) + 1)) - round(side / 8) for k, side in ((0, height), (1, width)))
        moved = torch.zeros_like(image)
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    moved[:, y, x] = image[:, y + down, x + right]
        image = moved
    if enabled[1]:
        image = image + u[2] - 0.5
        for y in range(height):
            for x in range(width):
                grey = image[:, y, x].mean()
                image[:, y, x] = grey + (image[:, y, x] - grey) * 2 * u[3]
        image = image.mean() + (image - image.mean()) * (u[4] + 0.5)
    if enabled[2]:
        high, wide = round(height / 4), round(width / 4)
        top, left = int(u[5] * (height + 1 - high % 2)) - high // 2, int(u[6] * (width + 1 - wide % 2)) - wide // 2
        image = image.clone()
        image[:, max(top, 0) : top + high, max(left, 0) : left + wide] = 0
    return image


def test_augmentation_passes_gradients_to_the_pixels_it_keeps() -> None:
    images = normal(2, 3, 16, 16, key="images").requires_grad_()
    u = torch.zeros(7, 2, 1, 1)  # the furthest shift: two rows and two columns leave the picture
    diff_augment(images, u, torch.tensor([True, False, False])).sum().backward()
    assert images.grad is not None
    assert images.grad[:, :, :14, :14].eq(1).all()
    assert images.grad.sum() == 2 * 3 * 14 * 14


def test_quantise_is_its_naive_loop() -> None:
    values = torch.linspace(-1.3, 1.3, 41)
    expected = [round(127.5 * (min(max(value, -1.0), 1.0) + 1)) / 127.5 - 1 for value in values.tolist()]
    torch.testing.assert_close(quantise(values), torch.tensor(expected), atol=1e-6, rtol=0)
