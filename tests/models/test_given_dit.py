"""Where a diffusion transformer comes from: the parameters, a folder, a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.test_dit import SMALL
from vtp.config import load
from vtp.models.dit import DiT
from vtp.models.given_dit import as_it_is, go_on_from, options_of
from vtp.models.lightningdit import save_checkpoint
from vtp.seeding import generator

SHAPE = (SMALL.latent_channels, SMALL.grid, SMALL.grid)


@pytest.fixture
def model() -> DiT:
    made = DiT(SMALL)
    made.init_weights(generator(0, "init"))
    return made.eval()


def equal(first: DiT, second: DiT) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_a_given_one_is_used_as_it_is_or_trained_on(tmp_path: Path, model: DiT, form: str) -> None:
    path = tmp_path / "given"
    if form == "folder":
        model.save_pretrained(path)
    else:
        save_checkpoint(model, path)
    assert equal(as_it_is(path, SHAPE, SMALL.num_classes), model)
    fresh = DiT(SMALL)
    fresh.init_weights(generator(1, "init"))
    assert not equal(fresh, model)
    go_on_from(fresh, path)
    assert equal(fresh, model)
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_one_for_other_latents_or_classes_is_named(tmp_path: Path, model: DiT) -> None:
    model.save_pretrained(tmp_path)
    for shape, classes in (((4, 6, 6), 3), ((5, 8, 8), 3), (SHAPE, 4)):
        with pytest.raises(ValueError, match=r"paints latents of 5 x 6 x 6 in 3 classes; this pipeline's are"):
            as_it_is(tmp_path, shape, classes)
    with pytest.raises(ValueError, match=r"depth \(2, not 3\), mlp_ratio \(4\.0, not 2\.0\); set dit to its values"):
        go_on_from(DiT(replace(SMALL, depth=3, mlp_ratio=2.0)), tmp_path)


def test_the_parameters_say_the_rest() -> None:
    params = load(["dit.width=96", "dit.mlp_ratio=3", "dit.rmsnorm=false"]).dit
    options = options_of(params, (16, 8, 8), 7)
    assert (options.width, options.mlp_ratio, options.rmsnorm) == (96, 3.0, False)
    assert (options.latent_channels, options.grid, options.num_classes) == (16, 8, 7)
    with pytest.raises(ValueError, match="4 x 8 positions are no square"):
        options_of(params, (16, 4, 8), 7)
