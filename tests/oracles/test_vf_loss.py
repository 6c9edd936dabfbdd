"""VA-VAE's loss on a toy autoencoder: alignment, divergence, adversary, both adaptive weights, and every gradient."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.objectives.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from vtp.objectives.alignment import alignment_loss
from vtp.objectives.reconstruction import kl_loss, l1_loss

ORACLE = load_file(FOLDER / "vf_loss" / "io.safetensors")
RUNS = json.loads((FOLDER / "vf_loss" / "config.json").read_text())["runs"]


def close(compare: Compare, name: str, ours: Tensor) -> None:
    """Within 2e-5 of the stored tensor, or of its size where that is larger."""
    size = max(1.0, ORACLE[name].abs().max().item())
    compare("vf_loss", name, ours, ORACLE[name], Tolerance(2e-5 * size, 2e-5 * size))


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


def test_the_toy_is_the_oracles(compare: Compare) -> None:
    made = toy()
    for name in ("z", "reconstruction", "z_projected"):
        close(compare, name, made[name])


@pytest.mark.parametrize("name", RUNS)
def test_every_run(compare: Compare, name: str) -> None:
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
        close(compare, f"{name}.{key}", value)
    if not mean_style:
        norms = {"nll_enc": nll_grad, "nll_dec": rebuilt, "g_dec": adversarial}
        for key, value in norms.items():
            close(compare, f"norm.{key}", value.norm())
    assert {key for key in ORACLE if key.startswith(f"{name}.")} == {f"{name}.{key}" for key in found}


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"image", "enc_weight", "dec_weight", "proj_weight", "disc_weight", "disc_bias", "aux_feature"}
    rest = {name for name in ORACLE if name.split(".")[0] not in {*RUNS, "norm"}}
    assert rest == inputs | {"z", "reconstruction", "z_projected"}
    assert {name for name in ORACLE if name.startswith("norm.")} == {"norm.nll_enc", "norm.nll_dec", "norm.g_dec"}
