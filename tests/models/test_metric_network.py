from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vtp.models.metric_network import MEAN, STD, MetricNetwork


def network(seed: int = 0, model: str = "test_resnet") -> MetricNetwork:
    return MetricNetwork(model, num_classes=7, image_size=64, seed=seed).eval()


PICTURES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = network(), network(), network(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pixels = PICTURES.float() / 255
    assert torch.equal(first(pixels), again(pixels))
    assert not torch.allclose(first(pixels), other(pixels))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_one_pass_gives_features_and_logits(model: str) -> None:
    judge = network(model=model)
    pixels = PICTURES.float() / 255
    features, logits = judge.describe(PICTURES)
    assert features.shape == (4, judge.net.head_hidden_size)
    assert logits.shape == (4, 7)
    torch.testing.assert_close(features, judge.features(pixels))
    torch.testing.assert_close(logits, judge(pixels))
    torch.testing.assert_close(logits, judge.net.get_classifier()(features))


def test_pixels_are_normalised_inside() -> None:
    judge = network()
    pixels = PICTURES.float() / 255
    shifted = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(judge(pixels), judge.net(shifted))


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.metric_network\.model=test_resnett .* test_resnet\?"):
        network(model="test_resnett")


def test_saved_and_read_back(tmp_path: Path) -> None:
    judge = network(seed=3)
    judge.save_pretrained(tmp_path)
    read = MetricNetwork.from_pretrained(tmp_path)
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert all(torch.equal(a, b) for a, b in zip(read.describe(PICTURES), judge.describe(PICTURES), strict=True))
