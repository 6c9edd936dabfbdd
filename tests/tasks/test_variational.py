"""The classic autoencoder in training: what is learned from, by whom, and what the discriminator's stage leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.engine.test_loop import run
from tests.tasks.conftest import CONVOLUTIONAL, SMALL, Distance, batch_of, build
from vtp.config import ConfigError, load
from vtp.data.views import random_view, reconstruction_view
from vtp.models.convolutional import ConvolutionalTokenizer
from vtp.models.discriminator import PatchDiscriminator
from vtp.models.tokenizer import denormalize, normalize
from vtp.objectives.adversarial import hinge_generator
from vtp.objectives.reconstruction import l1_loss
from vtp.seeding import Draws, generator
from vtp.tasks.base import Backward, Report, Task
from vtp.tasks.choice import pretraining
from vtp.tasks.decoder import FinetuneDecoder
from vtp.tasks.variational import PretrainVariational

KL = [*SMALL, *CONVOLUTIONAL]


def variational(*overrides: str, microbatch: int | None = None) -> PretrainVariational:
    task = build("variational", *overrides, microbatch=microbatch)
    assert isinstance(task, PretrainVariational)
    return task


def refining(*overrides: str, microbatch: int | None = None) -> FinetuneDecoder:
    params = load([*KL, *overrides])
    critic = PatchDiscriminator(8, 1)
    critic.init_weights(generator(params.seed, "discriminator"))
    tokenizer = ConvolutionalTokenizer.new(params.tokenizer, params.data.image_size, params.seed)
    return FinetuneDecoder(params.finetune_decoder, tokenizer, critic, Distance(), image_size=32, microbatch=microbatch)


def one_step(task: Task, phase: str = "pretrain", step: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Scalars and gradients of a step."""
    scalars: dict[str, torch.Tensor] = {}
    for item in task.passes(phase, batch_of(step), Draws(0, step)):
        match item:
            case Report(found):
                scalars |= found
            case Backward():
                item.total().backward()
    return scalars, {name: p.grad for name, p in task.models.named_parameters() if p.grad is not None}


def test_the_divergence_is_the_naive_sum_for_each_number_of_a_picture():
    task = variational()
    scalars, _ = one_step(task)
    images = batch_of(0)["images"][Draws(0, 0).subset("reconstruction_subset", 8, 4)]
    view = reconstruction_view(images, Draws(0, 0), 4, task.params.views, size=32).of()
    with torch.no_grad():
        mean, log_variance = task.tokenizer.posterior(view)
    nats = sum(
        (m * m + math.exp(v) - 1 - v) / 2 for m, v in zip(mean.flatten().tolist(), log_variance.flatten().tolist(), strict=True)
    )
    assert float(scalars["kl"]) == pytest.approx(nats / 4 / (3 * 32 * 32), rel=1e-4)
    assert set(scalars) == {"l1", "lpips", "kl"}


def test_pictures_come_back_from_a_sample_not_from_the_mean():
    task = variational()
    with torch.no_grad():
        task.tokenizer.encoder.quant_conv.bias[8:] = 3.0  # a large variance, whatever the picture
    noisy = one_step(task)[0]["l1"]
    with torch.no_grad():
        task.tokenizer.encoder.quant_conv.weight[8:] = 0
        task.tokenizer.encoder.quant_conv.bias[8:] = -29.0  # next to none
    view = reconstruction_view(
        batch_of(0)["images"][Draws(0, 0).subset("reconstruction_subset", 8, 4)], Draws(0, 0), 4, task.params.views, size=32
    ).of()
    with torch.no_grad():
        plain = l1_loss(task.tokenizer.decoder(task.tokenizer.encode(view)), normalize(view))
    torch.testing.assert_close(one_step(task)[0]["l1"], plain)
    assert abs(float(noisy - plain)) > 1e-3


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    (whole, grads), (parts, pieces) = one_step(variational()), one_step(variational(microbatch=2))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-4, atol=1e-6)
    assert grads.keys() == pieces.keys() == {name for name, _ in variational().models.named_parameters()}
    for name, grad in grads.items():
        torch.testing.assert_close(pieces[name], grad, rtol=5e-3, atol=5e-6)


@pytest.mark.slow
def test_it_learns_and_a_heavy_divergence_keeps_latents_standard(tmp_path):
    fixed, wide = batch_of(0), ("tokenizer.convolutional.width=16", "pretrain.optimizer.rate=3e-3", "pretrain.steps=60")

    def trained(weight: float) -> list[dict[str, float]]:
        task = variational(*wide, f"pretrain.weights.kl={weight}")
        return run(task, tmp_path / str(weight), made=lambda start, stop: (fixed for _ in range(start, stop)), log_every=10)

    light, heavy = trained(1e-6), trained(10.0)
    assert light[-1]["l1"] < 0.94 * light[0]["l1"]
    assert light[-1]["kl"] > 5 * light[0]["kl"]
    assert heavy[-1]["kl"] < 0.02 * light[-1]["kl"]


def test_the_generators_gradient_is_that_of_the_plain_weighted_sum():
    """A last layer of 3 x 3, against one backward through everything."""
    task, expected = refining(), refining()
    _, found = one_step(task, "generator", 3)
    draws = Draws(0, 3)
    pixels = random_view(batch_of(3)["images"], draws, "view", 8, scale=task.params.crop_scale, size=32, flip=True).of()
    decoded = expected.decoder(expected.tokenizer.encode(pixels))
    signed, weights = 2 * denormalize(decoded) - 1, expected.params.weights
    distance = expected.perceptual(signed, 2 * pixels - 1).mean()
    rebuilt = weights["l1"] * l1_loss(decoded, normalize(pixels)) + weights["lpips"] * distance
    adversarial = hinge_generator(expected.discriminator(expected._augment(signed, slice(0, 8), draws, "augment_generator")))
    last = expected.decoder.last.weight
    strong = torch.autograd.grad(rebuilt, last, retain_graph=True)[0].norm()
    weak = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    (rebuilt + weights["adversarial"] * (strong / (weak + 1e-6)).detach() * adversarial).backward()
    for name, parameter in expected.decoder.named_parameters():
        torch.testing.assert_close(found[f"decoder.{name}"], parameter.grad, atol=2e-5, rtol=2e-3)


def test_the_discriminators_stage_changes_the_decoder_and_nothing_of_the_latents(tmp_path):
    task, before = refining(), refining().tokenizer.state_dict()
    run(task, tmp_path)
    moved = {name.split(".")[0] for name, tensor in task.tokenizer.state_dict().items() if not tensor.equal(before[name])}
    assert moved == {"decoder"}


def test_noise_on_latents_and_micro_batches_agree_in_the_discriminators_stage():
    noisy = "finetune_decoder.latent_noise=0.5"
    whole, parts = one_step(refining(noisy), "generator", 3)[0], one_step(refining(noisy, microbatch=4), "generator", 3)[0]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-3, atol=1e-5)


def test_the_networks_decide_what_is_trained():
    params = load(KL)
    tokenizer = ConvolutionalTokenizer.new(params.tokenizer, 32, params.seed)
    head = generator(params.seed, "head")
    task = pretraining(params.pretrain, tokenizer, Distance(), image_size=32, generator=head, microbatch=None)
    assert isinstance(task, PretrainVariational)


@pytest.mark.parametrize("objective", ["ae", "clip+ae", "ssl+ae", "clip+ssl+ae", "ae+align"])
def test_other_objectives_are_refused_before_anything_runs(objective):
    teacher = "pretrain.align.teacher=" + ("/a" if "align" in objective else "null")
    words = f"pretrain.objective={objective} .*network=convolutional has not; use ae+kl".replace("+", "[+]")
    with pytest.raises(ConfigError, match=words):
        load([*KL, f"pretrain.objective={objective}", teacher])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tokenizer.network=transformer"], "ae.kl needs a latent that is a distribution, .*the recipe kl-vae"),
        (["tokenizer.patch=12", "data.image_size=48"], "tokenizer.patch=12 is not a power of two"),
        (["pretrain.drop_path=0.1"], "pretrain.drop_path=0.1 drops blocks of transformers"),
        (["pretrain.frozen=true", "pretrain.init_from=/a"], "pretrain.frozen=true needs"),
        (["tokenizer.convolutional.width=3"], "tokenizer.convolutional.width"),
        (["tokenizer.network=unet"], "tokenizer.network"),
    ],
)
def test_impossible_forms_are_refused_before_anything_runs(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load([*KL, *overrides])


def test_a_given_one_needs_no_parameter_of_training():
    assert load(["tokenizer.source=pretrained:/somewhere", "tokenizer.network=convolutional"]).pretrain.objective == "clip+ssl+ae"
