"""What is measured of a tokenizer and of samples, over which pictures, and what it may be called."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtp import evaluation
from vtp.config import load
from vtp.metrics.generation import frechet
from vtp.seeding import generator

CPU = torch.device("cpu")
PARAMS = dataclasses.replace(load().evaluate, features="metric", batch=300)


class Pictures:
    """Twelve random pictures, as a split hands them out."""

    def __len__(self) -> int:
        return 12

    def image(self, i: int) -> torch.Tensor:
        return torch.randint(256, (3, 16, 16), generator=generator(0, "pictures", i), dtype=torch.uint8)


@pytest.mark.parametrize(("features", "name"), [("metric", "rfd"), ("inception", "rfid")])
def test_only_a_distance_in_inceptions_features_is_called_fid(features, name):
    params = dataclasses.replace(load().evaluate, features=features, batch=5)
    darker = SimpleNamespace(encode=lambda pixels: pixels, decode=lambda latents: latents / 2)
    found = evaluation.reconstruction(
        darker,
        Pictures(),
        lambda pictures: (pictures.float().mean((2, 3)) / 255, pictures),
        lambda first, second: (first - second).abs().mean((1, 2, 3)),
        params,
        CPU,
    )
    assert set(found) == {"psnr", "ssim", "distance", name}
    assert found[name] > 0.1
    pictures = torch.stack([Pictures().image(i) for i in range(12)]) / 255
    assert found["distance"] == pytest.approx(float(pictures.mean()), rel=1e-5)  # 2 * |p / 2 - p| in [-1, 1]
    errors = (pictures / 2).square().mean((1, 2, 3))
    assert found["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)


def test_what_measures_is_not_rounded_where_networks_are() -> None:
    """A GPU's stages run under autocast, in which a convolution of these very numbers is off by a hundredth."""
    kernel = torch.rand(4, 3, 3, 3, generator=generator(0, "kernel"))

    def features(pictures: Tensor) -> tuple[Tensor, Tensor]:
        maps = F.conv2d(pictures.float() / 255, kernel).mean((2, 3))
        return maps, 10 * maps

    def measured(rounded: bool) -> tuple[dict, evaluation.Described]:
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            found = evaluation.reconstruction(
                SimpleNamespace(encode=lambda pixels: pixels, decode=lambda latents: 0.98 * latents),  # type: ignore[arg-type]
                Pictures(),  # type: ignore[arg-type]
                features,
                lambda first, second: F.conv2d(first - second, kernel).abs().mean((1, 2, 3)),
                dataclasses.replace(PARAMS, batch=5),
                CPU,
            )
            return found, evaluation.seen(features, lambda pictures: pictures, Pictures().image, 12, PARAMS, CPU)

    (found, described), (expected, plain) = measured(True), measured(False)
    assert found == expected
    assert 0.99 < found["ssim"] < 1
    for ours, theirs in zip(described, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_imagenet_among_the_templates_stands_for_clips_80() -> None:
    """Taken as it is written it made one prompt of all classes, and zero-shot accuracy chance."""
    from tests.tasks.conftest import SMALL, tokenizer

    model = tokenizer(load(SMALL))
    found = evaluation.prompt_features(["dog", "cat"], ["{}", "imagenet"], model, CPU)
    assert found.shape == (2, 81, 16)
    alone = evaluation.prompt_features(["cat"], ["a bad photo of a {}."], model, CPU)
    torch.testing.assert_close(found[1, 1], alone[0, 0])


def latents(seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(1000, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) + shift


def paint(rows: Tensor) -> Tensor:
    return evaluation.to_uint8(F.interpolate(rows, size=8) / 4 + 0.5)


def describe(pictures: Tensor) -> tuple[Tensor, Tensor]:
    features = F.avg_pool2d(pictures.float() / 255, 4).flatten(1)
    return features, 20 * features[:, :5]


class Reference(SimpleNamespace):
    """A split of twice as many pictures as there are samples."""

    name = "validation"
    pictures = torch.cat([paint(latents(7)), paint(latents(8))])

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, i: int) -> Tensor:
        return self.pictures[i]


def test_each_set_is_held_against_pictures_spread_over_the_split() -> None:
    sets = {"samples": latents(0), "gaussian": latents(1, 1.0), "unguided": latents(2, 0.3)}
    found = evaluation.generation(sets, paint, Reference(), describe, PARAMS, CPU)  # type: ignore[arg-type]
    real = describe(Reference.pictures[::2])[0]
    for name, key in (("samples", "gfd"), ("gaussian", "gfd_gaussian"), ("unguided", "gfd_unguided")):
        assert found[key] == pytest.approx(frechet(describe(paint(sets[name]))[0], real), rel=1e-6), name
    assert found["samples"] == 1000
    assert found["precision"] > 0.5


def test_without_a_network_there_are_no_distances() -> None:
    found = evaluation.generation({"samples": latents(0), "gaussian": latents(1)}, paint, Reference(), None, PARAMS, CPU)  # type: ignore[arg-type]
    assert found.pop("samples") == 1000
    assert set(found) == {"gfd", "gfd_gaussian", "inception_style_score", "precision", "recall", "kid"}
    assert set(found.values()) == {None}
    assert evaluation.describer("metric", Path("/no/network"), CPU) is None


def test_fewer_pictures_than_samples_are_refused() -> None:
    few = Reference(pictures=Reference.pictures[:999])
    with pytest.raises(ValueError, match=r"sample\.samples=1000, but evaluate\.reference=validation has 999 pictures"):
        evaluation.generation({"samples": latents(0)}, paint, few, describe, PARAMS, CPU)  # type: ignore[arg-type]
