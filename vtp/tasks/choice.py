"""Which pre-training the parameters and the tokenizer's networks ask for."""

from __future__ import annotations

import torch
from torch import nn

from vtp.config import PretrainParams
from vtp.models.base import Tokenizer
from vtp.models.convolutional import ConvolutionalTokenizer
from vtp.models.foundation import foundation
from vtp.models.tokenizer import VisualTokenizer
from vtp.tasks.base import Task
from vtp.tasks.baselines import PretrainAligned, PretrainFrozen
from vtp.tasks.pretrain import Pretrain
from vtp.tasks.variational import PretrainVariational


def pretraining(
    params: PretrainParams,
    tokenizer: Tokenizer,
    perceptual: nn.Module,
    *,
    image_size: int,
    generator: torch.Generator,
    microbatch: int | None,
) -> Task:
    """The joint objectives, latents held close to a frozen network, all but a frozen trunk, or the classic autoencoder."""
    if isinstance(tokenizer, ConvolutionalTokenizer):
        return PretrainVariational(params, tokenizer, perceptual, image_size=image_size, microbatch=microbatch)
    assert isinstance(tokenizer, VisualTokenizer)
    if params.align.teacher is not None:
        teacher = foundation(params.align.teacher)
        return PretrainAligned(
            params, tokenizer, perceptual, teacher, image_size=image_size, generator=generator, microbatch=microbatch
        )
    kind = PretrainFrozen if params.frozen else Pretrain
    return kind(params, tokenizer, perceptual, image_size=image_size, generator=generator, microbatch=microbatch)
