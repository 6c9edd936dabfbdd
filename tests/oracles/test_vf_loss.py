"""VA-VAE's loss on a toy autoencoder: alignment, divergence, adversary, both adaptive weights, and every gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vtp.objectives.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from vtp.objectives.alignment import alignment_loss
from vtp.objectives.reconstruction import kl_loss, l1_loss

FOLDER = Path(__file__).parent / "vf_loss"
ORACLE = load_file(FOLDER / "io.safetensors")
RUNS = json.loads((FOLDER / "config.json").read_text())["runs"]


def close(ours: Tensor, name: str) -> None:
    torch.testing.assert_close(ours, ORACLE[name], atol=2e-5, rtol=2e-5)


def toy() -> dict[str, Tensor]:
    """The autoencoder of the oracle, with gradients at its three layers."""
    enc, dec, proj = (ORACLE[f"{name}_weight"].clone().requires_grad_() for name in ("enc", "dec", "proj"))
    stride = enc.shape[-1]
    mean, log_variance = F.conv2d(ORACLE["image"], enc, stride=stride).chunk(2, dim=1)
    reconstruction = F.conv_transpose2d(mean, dec, stride=stride)
    return {
        "enc": enc,
        "dec": dec,
        "proj": proj,
        "z": mean,
        "log_variance": log_variance.clamp(-30, 20),
        "reconstruction": reconstruction,
        "z_projected": F.conv2d(mean, proj),
    }


def discriminator(images: Tensor) -> Tensor:
    return F.conv2d(images, ORACLE["disc_weight"], ORACLE["disc_bias"], stride=2, padding=1)


def gradient(loss: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


def test_the_toy_is_the_oracles() -> None:
    made = toy()
    for name in ("z", "reconstruction", "z_projected"):
        close(made[name], name)


@pytest.mark.parametrize("name", RUNS)
def test_every_run(name: str) -> None:
    run, made, image = RUNS[name], toy(), ORACLE["image"]
    pictures, mean_style = len(image), run.get("pp_style", False)
    rec = l1_loss(made["reconstruction"], image)
    nll = rec if mean_style else rec * image[0].numel()
    kl = kl_loss(made["z"], made["log_variance"])
    if mean_style:  # a mean over all numbers, without the half
        kl = 2 * kl * pictures / made["z"].numel()
    aligned = alignment_loss(
        made["z_projected"],
        ORACLE["aux_feature"],
        distance_margin=run["distmat_margin"],
        cosine_margin=run["cos_margin"],
    )
    vf = run.get("distmat_weight", 1.0) * aligned["distance"] + run.get("cos_weight", 1.0) * aligned["cosine"]
    nll_grad, vf_grad = gradient(nll, made["enc"]), gradient(vf, made["enc"])
    vf_weight = adaptive_weight(nll_grad, vf_grad, 1e8, eps=1e-4) if run["adaptive_vf"] else torch.tensor(1.0)
    vf_weight = run["vf_weight"] * vf_weight
    g = hinge_generator(discriminator(made["reconstruction"]))
    rebuilt, adversarial = gradient(nll, made["dec"]), gradient(g, made["dec"])
    d_weight = run["disc_weight"] * adaptive_weight(rebuilt, adversarial, 1e4, eps=1e-4)
    factor = torch.tensor(float(run["global_step"] >= run["disc_start"]))
    total = nll + run["kl_weight"] * kl + d_weight * factor * g + vf_weight * vf
    found = {
        "rec_loss": rec,
        "nll_loss": nll,
        "kl_loss": kl,
        "vf_loss": vf,
        "vf_weight": vf_weight,
        "g_loss": g,
        "d_weight": d_weight,
        "disc_factor": factor,
        "disc_loss": factor * hinge_discriminator(discriminator(image), discriminator(made["reconstruction"].detach())),
        "logvar": torch.tensor(0.0),  # of the likelihood: a constant in the published code
        "total_loss": total,
        **{f"grad_{layer}": gradient(total, made[layer]) for layer in ("enc", "dec", "proj")},
    }
    for key, value in found.items():
        close(value, f"{name}.{key}")
    if not mean_style:
        norms = {"nll_enc": nll_grad, "nll_dec": rebuilt, "g_dec": adversarial}
        for key, value in norms.items():
            close(value.norm(), f"norm.{key}")
    assert {key for key in ORACLE if key.startswith(f"{name}.")} == {f"{name}.{key}" for key in found}
