"""Small tasks of every kind on random pictures, as a stage would build them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vtp.config import Params, load
from vtp.models.convolutional import ConvolutionalTokenizer
from vtp.models.discriminator import PatchDiscriminator
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.models.foundation import TokenizerFoundation
from vtp.models.tokenizer import VisualTokenizer
from vtp.seeding import generator
from vtp.tasks.base import Task
from vtp.tasks.baselines import PretrainAligned
from vtp.tasks.decoder import FinetuneDecoder
from vtp.tasks.dit import TrainDit
from vtp.tasks.metric import TrainMetricNetwork
from vtp.tasks.pretrain import Pretrain
from vtp.tasks.variational import PretrainVariational

SMALL = [
    "data.image_size=32",
    "data.context_length=8",
    "tokenizer.patch=8",
    "tokenizer.latent_channels=8",
    "model.sizes.small={encoder: {width: 32, depth: 2, heads: 2}, decoder: {width: 32, depth: 1, heads: 2},"
    " text: {width: 16, depth: 1, heads: 2}}",
    "pretrain.batch=8",
    "pretrain.ssl_batch=4",
    "pretrain.reconstruction_batch=4",
    "pretrain.steps=6",
    # Everything that tuning the demo may change, so that stored losses do not hang on it.
    "pretrain.weights={clip: 1.0, dino: 1.0, ibot: 1.0, koleo: 0.1, l1: 1.0, lpips: 0.1}",
    "pretrain.optimizer={rate: 1e-3, warmup: 2, cooldown: 2, final_rate: 0.05, betas: [0.9, 0.98],"
    " weight_decay: 0.05, clip: 3.0}",
    "pretrain.ssl.teacher_momentum={start: 0.98, end: 0.996, steps: 20}",
    "pretrain.ssl.teacher_temperature={start: 0.04, end: 0.07, steps: 10}",
    "finetune_decoder.weights={l1: 1.0, lpips: 0.5, adversarial: 0.5, lecam: 0.001}",
    "finetune_decoder.ema=0.97",
    "finetune_decoder.optimizer={rate: 3e-4, warmup: 2, cooldown: 2, final_rate: 0.1, betas: [0.9, 0.95],"
    " weight_decay: 0.0, clip: 3.0}",
    "finetune_decoder.discriminator_optimizer={rate: 3e-4, warmup: 2, cooldown: 2, final_rate: 0.1, betas: [0.5, 0.9],"
    " weight_decay: 0.0, clip: null}",
    "dit.ema=0.99",
    "dit.optimizer={rate: 1e-3, warmup: 0, cooldown: 2, final_rate: 0.05, betas: [0.9, 0.95], weight_decay: 0.0, clip: 1.0}",
    "evaluate.metric_network.optimizer={rate: 2e-3, warmup: 2, cooldown: 2, final_rate: 0.01, betas: [0.9, 0.99],"
    " weight_decay: 0.05, clip: null}",
    "pretrain.views.global_size=32",
    "pretrain.views.local_size=16",
    "pretrain.views.local_crops=2",
    "pretrain.ssl.prototypes=16",
    "pretrain.ssl.freeze_last_layer=0",
    "pretrain.ssl.head_hidden=16",
    "pretrain.ssl.head_bottleneck=8",
    "finetune_decoder.batch=8",
    "finetune_decoder.steps=6",
    "finetune_decoder.discriminator_start=1",
    "finetune_decoder.adversarial_start=2",
    "dit.batch=8",
    "dit.steps=6",
    "evaluate.metric_network.batch=8",
    "evaluate.metric_network.steps=6",
]


CONVOLUTIONAL = [
    "tokenizer.network=convolutional",
    "tokenizer.convolutional={width: 8, doublings: 1, blocks: 1}",
    "pretrain.objective=ae+kl",
    "pretrain.weights.kl=1e-6",
]
ALIGNED = ["pretrain.objective=ae+align", "pretrain.align.teacher=/somewhere"]
OF_KIND = {"variational": CONVOLUTIONAL, "aligned": ALIGNED}


class Distance(nn.Module):
    """A cheap stand-in for a perceptual network: squared differences of a fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(4, 3, 5, 5, generator=generator(0, "distance")) / 9
        self.register_buffer("weight", weight)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(first - second, self.weight, stride=2).square().mean((1, 2, 3))


def tokenizer(params: Params) -> VisualTokenizer:
    from stages.pretrain import options

    model = VisualTokenizer(options(params))
    model.init_weights(generator(params.seed, "tokenizer"))
    return model


def build(kind: str, *overrides: str, microbatch: int | None = None) -> Task:
    """The task called `kind`, freshly initialised; the same weights at every call."""
    params = load([*SMALL, *OF_KIND.get(kind, ()), *overrides])
    size = params.data.image_size
    if kind == "variational":
        convolutional = ConvolutionalTokenizer.new(params.tokenizer, size, params.seed)
        task: Task = PretrainVariational(params.pretrain, convolutional, Distance(), image_size=size, microbatch=microbatch)
    elif kind == "pretrain":
        task = Pretrain(
            params.pretrain,
            tokenizer(params),
            Distance(),
            image_size=size,
            generator=generator(params.seed, "head"),
            microbatch=microbatch,
        )
    elif kind == "aligned":
        task = PretrainAligned(
            params.pretrain,
            tokenizer(params),
            Distance(),
            TokenizerFoundation(tokenizer(load([*SMALL, "seed=5", "pretrain.objective=ae"]))),
            image_size=size,
            generator=generator(params.seed, "head"),
            microbatch=microbatch,
        )
    elif kind == "decoder":
        critic = PatchDiscriminator(8, 1)
        critic.init_weights(generator(params.seed, "discriminator"))
        task = FinetuneDecoder(
            params.finetune_decoder, tokenizer(params), critic, Distance(), image_size=size, microbatch=microbatch
        )
    elif kind == "dit":
        p = params.dit
        model = DiT(
            DitOptions(
                latent_channels=8,
                grid=4,
                patch=1,
                width=32,
                depth=1,
                heads=2,
                mlp_ratio=4.0,
                num_classes=5,
                qk_norm=p.qk_norm,
                swiglu=p.swiglu,
                rope=p.rope,
                rmsnorm=p.rmsnorm,
                shift=p.shift,
                learn_sigma=False,
            )
        )
        model.init_weights(generator(params.seed, "dit"))
        task = TrainDit(p, model, microbatch=microbatch)
    else:
        network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5))
        for i, parameter in enumerate(network.parameters()):
            parameter.data.uniform_(-0.1, 0.1, generator=generator(0, "network", i))
        task = TrainMetricNetwork(params.evaluate.metric_network, network, image_size=size)
    return task


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step: pictures with structure, captions, labels, latents."""
    draw = generator(7, "batch", step)
    coarse = torch.rand(8, 3, 5, 5, generator=draw)
    images = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    tokens = torch.randint(1, 400, (8, 8), generator=draw)
    tokens[:, 0], tokens[:, 5], tokens[:, 6:] = 49406, 49407, 0
    return {
        "images": (images * 255).to(torch.uint8),
        "tokens": tokens,
        "labels": torch.randint(5, (8,), generator=draw),
        "latents": torch.randn(8, 8, 4, 4, generator=draw),
    }


KINDS = ("pretrain", "decoder", "dit", "metric")
ALL = (*KINDS, *OF_KIND)
CUT = tuple(kind for kind in ALL if kind != "metric")
"""What `run.microbatch` cuts."""


@pytest.fixture
def make() -> Callable[..., Task]:
    return build
