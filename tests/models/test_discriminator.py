from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vtp import seeding
from vtp.models.discriminator import FeatureDiscriminator, PatchDiscriminator, SpectralConv


def pictures(size: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1


def patch(width: int = 8, layers: int = 2) -> PatchDiscriminator:
    network = PatchDiscriminator(width, layers)
    network.init_weights(seeding.generator(0, "test"))
    return network


@pytest.mark.parametrize("size", [16, 17, 64])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_patch_grid(size: int, layers: int) -> None:
    assert patch(layers=layers)(pictures(size)).shape == (3, (size // 2**layers) ** 2)


def test_patch_pictures_too_small_for_the_layers() -> None:
    with pytest.raises(ValueError, match=r"discriminator\.layers=5"):
        patch(layers=5)(pictures(16))


def test_patch_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    network, batch = patch(), pictures(32)
    torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]))


def test_patch_logits_see_their_place_only_through_norms() -> None:
    """Without norms, a change in one corner leaves the opposite corner's logit: the receptive field is local."""
    network = patch()
    for i, module in enumerate(network.net):
        if isinstance(module, nn.GroupNorm):
            network.net[i] = nn.Identity()
    batch = pictures(64)
    changed = batch.clone()
    changed[:, :, :8, :8] = 0
    before, after = network(batch), network(changed)
    assert torch.equal(before[:, -1], after[:, -1])
    assert not torch.equal(before[:, 0], after[:, 0])


def test_init_is_a_function_of_the_generator() -> None:
    first, again = patch(), patch()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    deviation = torch.cat([m.weight.flatten() for m in first.modules() if isinstance(m, nn.Conv2d)]).std().item()
    assert abs(deviation - 0.02) < 0.001


def ring(inner: int = 6, outer: int = 5, kernel: int = 3) -> SpectralConv:
    layer = SpectralConv(inner, outer, kernel)
    layer.init_weights(seeding.generator(0, "ring"))
    return layer


def test_spectral_norm_becomes_one() -> None:
    layer = ring()
    x = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    for _ in range(50):
        layer(x)
    norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    padded = nn.functional.pad(x, (1, 1), mode="circular")
    torch.testing.assert_close(layer(x), nn.functional.conv1d(padded, layer.weight / norm, layer.bias))
    torch.testing.assert_close(layer(x.roll(2, -1)), layer(x).roll(2, -1))


def test_singular_vector_moves_in_training_only_and_allows_two_passes_before_one_backward() -> None:
    layer = ring()
    x = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
    before = layer.left.clone()
    layer.eval()(x)
    assert torch.equal(layer.left, before)
    layer.train()
    (layer(x).sum() + layer(x + 1).sum()).backward()
    assert not torch.equal(layer.left, before)
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def backbone() -> nn.Module:
    import timm

    with seeding.forked(0, "test"):
        return timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=64)


def on_features() -> FeatureDiscriminator:
    network = FeatureDiscriminator(backbone(), 64)
    network.init_weights(seeding.generator(0, "test"))
    return network


def test_feature_logits_by_patch_and_block() -> None:
    network = on_features()
    assert network(pictures(48)).shape == (3, len(network.taken) * (64 // 16) ** 2)
    assert network.taken == sorted(set(network.taken))
    assert network.taken == [0, 2, 3, 5]  # of six blocks


def test_feature_backbone_is_frozen_but_passes_gradients_to_the_pictures() -> None:
    network = on_features().train()
    assert not any(module.training for module in network.backbone.modules())
    assert all(module.training for module in network.heads.modules())
    x = pictures(64).requires_grad_()
    network(x).mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.heads.parameters())


def test_feature_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    network = on_features().eval()
    torch.testing.assert_close(network(pictures(64))[1:2], network(pictures(64)[1:2]))


def test_pretrained_backbone_comes_from_the_file(tmp_path: Path) -> None:
    import timm

    with seeding.forked(1, "test"):
        stored = timm.create_model("test_vit", pretrained=False)
    torch.save(stored.state_dict(), tmp_path / "weights.pth")
    network = FeatureDiscriminator.pretrained("test_vit", tmp_path / "weights.pth")
    loaded = network.backbone.state_dict()
    assert all(torch.equal(value, stored.state_dict()[key]) for key, value in loaded.items())
    assert network.size == 160


def test_missing_pretrained_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of timm/vit_small_patch16_dinov3\.lvd1689m"):
        FeatureDiscriminator.pretrained("vit_small_patch16_dinov3")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth is missing"):
        FeatureDiscriminator.pretrained("vit_small_patch16_dinov3", tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="feature_model=vit_smal is no"):
        FeatureDiscriminator.pretrained("vit_smal")
