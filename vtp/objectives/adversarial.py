"""Training a decoder against a discriminator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from vtp import dist
from vtp.compiling import compilable

TRANSLATION = 1 / 8  # furthest shift of a differentiable augmentation, as a fraction of the side
CUTOUT = 1 / 4  # side of the square it blanks, as a fraction of the side


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Half of mean relu(1 - real) + mean relu(1 + fake), over logits of any shape (arXiv 1705.02894).

    The loop it vectorises: for r in real: loss += max(0, 1 - r) / 2n;  for f in fake: loss += max(0, 1 + f) / 2n.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """Minus the mean logit of decoded pictures, the partner of `hinge_discriminator`: for f in fake: loss -= f / n."""
    return -fake.float().mean()


def lecam(real: Tensor, fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """Regulariser that keeps the discriminator's logits near the running mean of the other side (LeCam, arXiv 2104.03310).

    The loop it vectorises: for r in real: loss += max(0, r - ema_fake)^2 / n;  for f in fake: loss += max(0, ema_real - f)^2 / n.
    Differs from the paper's plain squares in the relu, which asks nothing of logits that have crossed over already; so does the
    authors' published code.

    Args:
        real, fake: logits of any shape.
        ema_real, ema_fake: running means of the logits over the global batch, one number each, without gradient.
    """
    over = F.relu(real.float() - ema_fake.float()).square().mean()
    under = F.relu(ema_real.float() - fake.float()).square().mean()
    return over + under


@torch.no_grad()
def last_layer_gradient(grad_output: Tensor, inputs: Tensor, *, channels: int) -> Tensor:
    """Gradient of the global loss at the weight of a last linear layer y = h W^T or 1x1 convolution: (dL/dy)^T h, exact.

    The loop it vectorises: for every position p of every picture of all ranks: gradient += outer(dL/dy[p], h[p]), over W ranks.
    It needs no weight, so the weight may be sharded, compiled or wrapped.

    Args:
        grad_output: dL/dy of this rank's loss, O channels.
        inputs: the layer's input h at the same positions, I channels.
        channels: the axis of the channels: -1 for a linear layer (..., O), 1 for a convolution (B, O, h, w).

    Returns:
        (O, I), the same on every rank.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        outer = grad_output.float().movedim(channels, -1).flatten(0, -2)
        inner = inputs.float().movedim(channels, -1).flatten(0, -2)
        return dist.mean(outer.T @ inner)


@torch.no_grad()
def last_convolution_gradient(grad_output: Tensor, inputs: Tensor, *, kernel: tuple[int, ...]) -> Tensor:
    """The same for a convolution of any odd kernel, without stride and padded with zeros so that its output is as large.

    The loop it vectorises, for every place p and every offset k of the window: gradient[k] += outer(dL/dy[p], h[p + k]).

    Args:
        grad_output: (B, O, h, w); inputs: (B, I, h, w).
        kernel: height and width of the window.

    Returns:
        (O, I, *kernel), or (O, I) for a kernel of one place; the same on every rank.
    """
    if all(side == 1 for side in kernel):
        return last_layer_gradient(grad_output, inputs, channels=1)
    shape, padding = [grad_output.shape[1], inputs.shape[1], *kernel], [side // 2 for side in kernel]
    with torch.autocast(inputs.device.type, enabled=False):
        return dist.mean(conv2d_weight(inputs.float(), shape, grad_output.float(), padding=padding))


@torch.no_grad()
def adaptive_weight(reconstruction_grad: Tensor, adversarial_grad: Tensor, most: float, *, eps: float = 1e-6) -> Tensor:
    """The factor at which the adversarial term pulls at a layer as hard as reconstruction does (VQGAN, arXiv 2012.09841).

    The loop it vectorises: sqrt(sum of reconstruction_grad[p]^2) / (sqrt(sum of adversarial_grad[p]^2) + eps), at most `most`.

    Args:
        reconstruction_grad, adversarial_grad: gradients of the two global losses at the layer's weight, usually the decoder's
            last. VA-VAE (arXiv 2501.01423) weighs its alignment alike, at the encoder's last layer.
        most: ceiling of the factor; 1e4 in RAE and VA-VAE, 1e8 for VA-VAE's alignment.
        eps: keeps the quotient finite; 1e-6 in RAE, 1e-4 in VQGAN and VA-VAE.

    Returns:
        One number without gradient.
    """
    wanted = torch.linalg.vector_norm(reconstruction_grad.float())
    return (wanted / (torch.linalg.vector_norm(adversarial_grad.float()) + eps)).clamp(max=most)


@compilable
def diff_augment(images: Tensor, uniforms: Tensor, enabled: Tensor) -> Tensor:
    """Differentiable augmentation of what the discriminator sees, real and decoded alike (arXiv 2006.10738).

    The order is RAE's (arXiv 2510.11690). The loop it vectorises, for each picture with its own u0..u6 in [0, 1):
        translation  shift by whole pixels, uniform over -side/8..side/8 in height (u0) and width (u1), zeros come in
        colour       add u2 - 0.5; saturation * 2 u3 about the pixel's mean; contrast * (u4 + 0.5) about the picture's mean
        cutout       zeros in a square of side/4 centred anywhere in the picture (u5, u6)

    Args:
        images: (B, 3, H, W) in [-1, 1].
        uniforms: (7, B, 1, 1), one set of numbers per picture.
        enabled: (3,) bool, whether translation, colour and cutout act; one decision for the batch. A tensor, so that a decision
            drawn on the device is never waited for.

    Returns:
        (B, 3, H, W) float32, not clamped.
    """
    images = images.float()
    translation, colour, cutout = enabled.to(images.device).unbind()
    u = uniforms.float().unsqueeze(2)  # (7, B, 1, 1, 1)
    images = torch.where(translation, _translated(images, u[0], u[1]), images)
    images = torch.where(colour, _recoloured(images, u[2], u[3], u[4]), images)
    return torch.where(cutout, _cut(images, u[5], u[6]), images)


def quantise(images: Tensor) -> Tensor:
    """Clamp to [-1, 1] and round to the 8-bit grid, so that no picture can be told by its fractions of a grey level.

    A resampled crop of a real one has fractions as a decoded one has; both are rounded.

    The loop it vectorises: for every number p: out[p] = round(127.5 (min(max(p, -1), 1) + 1)) / 127.5 - 1. It has no useful
    gradient and belongs to the discriminator's phase.
    """
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _translated(images: Tensor, u_height: Tensor, u_width: Tensor) -> Tensor:
    for axis, u in ((2, u_height), (3, u_width)):
        side = images.shape[axis]
        most = round(side * TRANSLATION)
        shift = (u * (2 * most + 1)).floor().long() - most
        source = _positions(images, axis) + shift
        inside = (source >= 0) & (source < side)
        # Wrapping round and then blanking reads every cell once, so the scatter of the backward pass adds in one order only.
        images = images.gather(axis, (source % side).expand_as(images)) * inside
    return images


def _recoloured(images: Tensor, u_brightness: Tensor, u_saturation: Tensor, u_contrast: Tensor) -> Tensor:
    images = images + (u_brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * u_saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (u_contrast + 0.5) + mean


def _cut(images: Tensor, u_height: Tensor, u_width: Tensor) -> Tensor:
    hidden = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis, u in ((2, u_height), (3, u_width)):
        side = images.shape[axis]
        length = round(side * CUTOUT)
        # An even square has its centre between two cells, hence one more place to put it.
        start = (u * (side + 1 - length % 2)).floor() - length // 2
        at = _positions(images, axis)
        hidden = hidden & (at >= start) & (at < start + length)
    return images * ~hidden


def _positions(images: Tensor, axis: int) -> Tensor:
    """0, 1, ... along one axis of (B, C, H, W), of size 1 along the others."""
    shape = [1, 1, 1, 1]
    shape[axis] = images.shape[axis]
    return torch.arange(images.shape[axis], device=images.device).view(shape)
