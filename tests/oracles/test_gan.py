"""RAE's discriminator and generator losses, adaptive weight, differentiable augmentation and 8-bit rounding."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.objectives.adversarial import (
    adaptive_weight,
    diff_augment,
    hinge_discriminator,
    hinge_generator,
    last_layer_gradient,
    quantise,
)

ORACLE = load_file(FOLDER / "gan" / "io.safetensors")
GROUPS = {
    "translation": (True, False, False),
    "color": (False, True, False),
    "cutout": (False, False, True),
    "all": (True, True, True),
}


def check(compare: Compare, name: str, ours: Tensor) -> None:
    """Within 2e-5 of the stored tensor, or of its size where that is larger."""
    size = max(1.0, ORACLE[name].abs().max().item())
    compare("gan", name, ours, ORACLE[name], Tolerance(2e-5 * size, 2e-5 * size))


def test_losses(compare: Compare) -> None:
    real, fake = ORACLE["logits_real"], ORACLE["logits_fake"]
    check(compare, "hinge_d", hinge_discriminator(real, fake))
    check(compare, "generator", hinge_generator(fake))


def test_adaptive_weight(compare: Compare) -> None:
    layer, hidden = ORACLE["ada_layer"].clone().requires_grad_(), ORACLE["ada_hidden"]
    y = hidden @ layer.T
    losses = {"ada_rec_loss": (y - ORACLE["ada_target"]).abs().mean(), "ada_g_loss": hinge_generator(y @ ORACLE["ada_disc"])}
    grads = []
    for name, loss in losses.items():
        check(compare, name, loss)
        (outer,) = torch.autograd.grad(loss, y, retain_graph=True)
        grads.append(last_layer_gradient(outer, hidden, channels=-1))
    check(compare, "ada_weight", adaptive_weight(*grads, 1e4))
    check(compare, "ada_weight_clamped", adaptive_weight(100 * grads[0], 1e-4 * grads[1], 50.0))


@pytest.mark.parametrize("group", GROUPS)
def test_augmentation(compare: Compare, group: str) -> None:
    check(
        compare, f"diffaug.{group}", diff_augment(ORACLE["diffaug.input"], ORACLE["diffaug.rand7"], torch.tensor(GROUPS[group]))
    )


def test_rounding(compare: Compare) -> None:
    check(compare, "quantise.output", quantise(ORACLE["quantise.input"]))


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"logits_real", "logits_fake", "ada_layer", "ada_hidden", "ada_target", "ada_disc"}
    inputs |= {"diffaug.input", "diffaug.rand7", "quantise.input"}
    compared = {"hinge_d", "generator", "ada_rec_loss", "ada_g_loss", "ada_weight", "ada_weight_clamped", "quantise.output"}
    compared |= {f"diffaug.{group}" for group in GROUPS}
    not_ours = {
        "vanilla_d",
        "diffaug.blur_warmup_0.1",
    }  # a loss and a warm-up of the published code that nothing here trains with
    assert set(ORACLE) == inputs | compared | not_ours
