from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from vtp.models import frozen
from vtp.models.frozen import Perceptual, perceptual


def pictures(seed: int) -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (perceptual("squeeze", "random", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    a, b = pictures(0), pictures(1)
    assert torch.equal(first(a, b), again(a, b))
    assert not torch.allclose(first(a, b), other(a, b))


def test_is_a_distance_by_picture() -> None:
    distance = perceptual("squeeze", "random", 0)
    a, b = pictures(0), pictures(1)
    assert distance(a, b).shape == (3,)
    torch.testing.assert_close(distance(a, a), torch.zeros(3))
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance(a[:1], b[:1]), distance(a, b)[:1])
    near = distance(a, a + 0.1 * (b - a))
    assert (near > 0).all()
    assert (near < distance(a, b)).all()


def test_gradients_reach_the_pictures_only() -> None:
    distance = perceptual("squeeze", "random", 0).train()
    assert not any(module.training for module in distance.modules())
    a = pictures(0).requires_grad_()
    distance(a, pictures(1)).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in distance.parameters())


def test_gradient_is_finite_where_every_channel_is_dead() -> None:
    distance = perceptual("squeeze", "random", 0)
    for parameter in distance.backbone.parameters():
        if parameter.dim() == 1:
            torch.nn.init.zeros_(parameter)
    a = distance.shift.expand(1, 3, 32, 32).clone().requires_grad_()  # reaches the backbone as zeros
    distance(a, pictures(1)[:1]).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_formula_is_the_package_s() -> None:
    import lpips

    from vtp import seeding

    with seeding.forked(0, "test"):
        package = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    channels = [layer.model[-1].weight for layer in package.lins]
    ours = Perceptual(package.net, package.scaling_layer.shift, package.scaling_layer.scale, channels)
    a, b = pictures(0), pictures(1)
    torch.testing.assert_close(ours(a, b), package(a, b).flatten())


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_missing_weights_are_named(checkpoints: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth") as told:
        perceptual("vgg", "published", 0)
    assert str(checkpoints) in str(told.value)
    assert "perceptual.weights: random" in str(told.value)
    with pytest.raises(FileNotFoundError, match=r"evaluate\.features: metric"):
        frozen.inception_file()


def test_published_weights_come_from_the_file(checkpoints: Path) -> None:
    from vtp import seeding

    with seeding.forked(0, "test"):
        stored = torchvision.models.squeezenet1_1().state_dict()
    torch.save(stored, checkpoints / frozen.BACKBONES["squeeze"])
    distance = perceptual("squeeze", "published", 0)
    assert torch.equal(next(distance.backbone.parameters()), stored["features.0.weight"])
    assert min(float(weight.min()) for weight in distance.channels) >= 0
    assert not torch.equal(distance.channels[0], torch.ones_like(distance.channels[0]))


def test_file_names_are_those_the_libraries_look_for() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    kinds = {
        "squeeze": torchvision.models.SqueezeNet1_1_Weights,
        "alex": torchvision.models.AlexNet_Weights,
        "vgg": torchvision.models.VGG16_Weights,
    }
    assert {net: Path(kind.IMAGENET1K_V1.url).name for net, kind in kinds.items()} == frozen.BACKBONES
    assert Path(URL_INCEPTION_V3).name == frozen.INCEPTION
