"""Other ways to a tokenizer: what is held close to a frozen network's features, and how hard."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_loop import run
from tests.tasks.conftest import ALIGNED, SMALL, Distance, batch_of, build, tokenizer
from vtp.config import ConfigError, load
from vtp.models.foundation import TimmFoundation, TokenizerFoundation, foundation
from vtp.models.given import take_trunk
from vtp.seeding import Draws, generator
from vtp.tasks.base import Backward, Report
from vtp.tasks.baselines import PretrainAligned, PretrainFrozen
from vtp.tasks.noise import latent_noise


def one_step(task: PretrainAligned | PretrainFrozen) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scalars and gradients of step 0."""
    scalars: dict[str, torch.Tensor] = {}
    for item in task.passes("pretrain", batch_of(0), Draws(0, 0, torch.device("cpu"))):
        match item:
            case Report(found):
                scalars |= found
            case Backward():
                item.total().backward()
    return scalars, {name: p.grad for name, p in task.models.named_parameters() if p.grad is not None}


def test_alignment_pulls_at_the_bottleneck_a_given_share_as_hard_as_reconstruction():
    weight = "tokenizer.encoder.feature_bottleneck.weight"
    margins = ("pretrain.align.distance_margin=0.0", "pretrain.align.cosine_margin=0.0")
    alone = one_step(build("aligned", *margins, "pretrain.align.weight=0.0"))[1][weight]
    both = one_step(build("aligned", *margins, "pretrain.align.weight=0.3"))[1][weight]
    assert float((both - alone).norm() / alone.norm()) == pytest.approx(0.3, rel=0.02)  # the rest is the epsilon


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    (whole, grads), (parts, pieces) = one_step(build("aligned")), one_step(build("aligned", microbatch=2))
    assert set(whole) == {"l1", "lpips", "distance", "cosine", "align_weight"}
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-4, atol=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(pieces[name], grad, rtol=2e-3, atol=2e-6)


def test_the_foundation_stays_as_it_is_and_the_latents_come_closer(tmp_path):
    task = build("aligned", "pretrain.steps=60", "pretrain.align.weight=1.0", "pretrain.align.cosine_margin=0.0")
    before = {name: tensor.clone() for name, tensor in task.foundation.state_dict().items()}
    assert not [name for name in task.models.state_dict() if "foundation" in name]
    fixed = batch_of(0)
    history = run(task, tmp_path, made=lambda start, stop: (fixed for _ in range(start, stop)), log_every=5)
    assert history[-1]["cosine"] < 0.8 * history[0]["cosine"]
    assert history[-1]["l1"] < history[0]["l1"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.foundation.state_dict().items())


def test_features_lie_on_the_grid_that_is_asked_for():
    teacher = TokenizerFoundation(tokenizer(load([*SMALL, "pretrain.objective=ae"])))
    pixels = torch.rand(2, 3, 32, 32, generator=generator(0, "pixels"))
    grid = teacher(pixels, (4, 4))
    assert grid.shape == (2, 32, 4, 4)
    torch.testing.assert_close(grid[1, :, 1, 2], teacher.tokenizer.features(pixels).patches[1, 6])
    assert teacher(pixels, (2, 3)).shape == (2, 32, 2, 3)
    assert not teacher.train().training


def test_a_transformer_of_timm_gives_its_patches_without_class_token_and_registers():
    import timm

    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, depth=1, reg_tokens=2)
    teacher = TimmFoundation(network)
    pixels = torch.rand(2, 3, 64, 64, generator=generator(0, "pixels"))
    assert teacher(pixels, (4, 4)).shape == (2, 192, 4, 4)
    half = torch.full((1, 3, 64, 64), 0.5)
    told = network.pretrained_cfg
    shifted = (half - torch.tensor(told["mean"]).view(3, 1, 1)) / torch.tensor(told["std"]).view(3, 1, 1)
    torch.testing.assert_close(teacher(half, (4, 4))[0, :, 0, 0], network.forward_features(shifted)[0, 3])


def test_a_folder_of_a_tokenizer_is_read(tmp_path):
    model = tokenizer(load([*SMALL, "pretrain.objective=ae"]))
    model.save_pretrained(tmp_path / "teacher")
    assert foundation(str(tmp_path / "teacher")).width == 32


def test_missing_teachers_are_named(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"teacher=/nowhere is no folder"):
        foundation("/nowhere")
    with pytest.raises(ValueError, match="timm:vit_smal is no pretrained model of timm"):
        foundation("timm:vit_smal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtp.models.foundation.cached_weights", lambda repository, remedy: "weights")
        with pytest.raises(ValueError, match=r"timm:resnet18 is no vision transformer that takes pictures of any size"):
            foundation("timm:resnet18")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of timm/vit_small.* or name the folder of a tokenizer"):
        foundation("timm:vit_small_patch14_dinov2")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pretrain.objective=ae+align"], "pretrain.align.teacher=null: pretrain.objective=ae.align needs a teacher"),
        (["pretrain.align.teacher=/teacher"], "has no use for one; set it to null"),
        (["pretrain.objective=ae+align", "pretrain.align.teacher=teacher"], "pretrain.align.teacher=teacher must be absolute"),
        ([*ALIGNED, "pretrain.init_from=/begin"], "one at a time can be pinned"),
        (["pretrain.frozen=true", "pretrain.objective=ae"], "pretrain.frozen=true needs pretrain.init_from"),
        (["pretrain.frozen=true", "pretrain.init_from=/trunk"], "and pretrain.objective=ae"),
    ],
)
def test_a_teacher_is_asked_for_before_anything_runs(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load(overrides)


def test_there_must_be_a_bottleneck_to_pull_at():
    with pytest.raises(ValueError, match="needs a bottleneck"):
        build("aligned", "tokenizer.latent_channels=32")


FROZEN = ("pretrain.objective=ae", "pretrain.frozen=true", "pretrain.init_from=/somewhere")


def frozen(*overrides: str, microbatch: int | None = None) -> PretrainFrozen:
    params = load([*SMALL, *FROZEN, *overrides])
    return PretrainFrozen(
        params.pretrain,
        tokenizer(params),
        Distance(),
        image_size=params.data.image_size,
        generator=generator(params.seed, "head"),
        microbatch=microbatch,
    )


@pytest.mark.parametrize("channels", [8, 32])
def test_a_frozen_trunk_stays_as_it_is_while_the_rest_learns(channels, tmp_path):
    size = f"tokenizer.latent_channels={channels}"
    task, before = frozen("pretrain.steps=60", size), frozen(size).models.state_dict()
    fixed = batch_of(0)
    history = run(task, tmp_path, made=lambda start, stop: (fixed for _ in range(start, stop)), log_every=5)
    assert history[-1]["l1"] < 0.9 * history[0]["l1"]
    moved = {name for name, tensor in task.models.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in moved if "bottleneck" not in name} == {"decoder"}
    assert ("tokenizer.encoder.feature_bottleneck.weight" in moved) is (channels == 8)


def test_noise_on_latents_is_that_of_the_row_whatever_the_micro_batch():
    noisy = "pretrain.latent_noise=0.8"
    (whole, grads), (parts, pieces) = one_step(frozen(noisy)), one_step(frozen(noisy, microbatch=2))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-4, atol=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(pieces[name], grad, rtol=2e-3, atol=2e-6)
    assert one_step(frozen())[0]["l1"] != whole["l1"]


def test_noise_has_a_deviation_of_its_own_for_each_picture_up_to_the_most():
    noise = latent_noise(Draws(0, 3, torch.device("cpu")), 500, (16, 8, 8), 0.8)
    assert noise is not None
    deviations = noise.flatten(1).std(1)
    assert 0.7 < float(deviations.max()) < 0.85
    assert float(deviations.mean()) == pytest.approx(0.4, abs=0.03)
    assert latent_noise(Draws(0, 3, torch.device("cpu")), 500, (16, 8, 8), 0.0) is None


def test_a_trunk_is_taken_without_its_bottleneck_and_only_where_it_fits(tmp_path):
    teacher = tokenizer(load([*SMALL, "seed=5"]))
    teacher.save_pretrained(tmp_path / "teacher")
    mine = tokenizer(load([*SMALL, "pretrain.objective=ae", "tokenizer.latent_channels=4"]))
    take_trunk(mine, tmp_path / "teacher")
    pixels = torch.rand(2, 3, 32, 32, generator=generator(0, "pixels"))
    torch.testing.assert_close(mine.features(pixels).patches, teacher.features(pixels).patches)
    assert mine.encode(pixels).shape == (2, 4, 4, 4)
    other = tokenizer(load([*SMALL, "model.sizes.small.encoder.depth=1"]))
    with pytest.raises(ValueError, match=r"has another trunk .*encoder\.depth \(2, not 1\)"):
        take_trunk(other, tmp_path / "teacher")
