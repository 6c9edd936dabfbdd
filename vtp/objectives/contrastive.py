"""Image-text contrast over the global batch.

Every rank compares its own rows with the columns of all ranks. The mean of the per-rank losses over ranks is the loss of the
global batch, and because the gather carries gradients, so are the averaged gradients; no rank ever holds the (B, B) matrix
(the "local loss" of OpenCLIP, arXiv 2212.07143).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vtp import dist


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of matching every picture to its caption and back, in nats (CLIP, arXiv 2103.00020).

    The loop it vectorises, over the global batch of B pairs with logits[i][j] = scale <image_i, text_j> + bias:
        for i: loss += (logsumexp_j logits[i][j] - logits[i][i] + logsumexp_j logits[j][i] - logits[i][i]) / 2B

    Args:
        image: (b, T) unit rows of this rank.
        text: (b, T) unit rows of this rank, in the same order.
        scale: exp(logit_scale), one number.
        bias: one number added to every logit; cannot move the softmax, and is there for models that were built with one.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = image.float(), text.float(), scale.float()
        images, texts = dist.gather(torch.stack([image, text], dim=1)).unbind(dim=1)
        to_texts = scale * image @ texts.T
        to_images = scale * text @ images.T
        if bias is not None:
            to_texts, to_images = to_texts + bias.float(), to_images + bias.float()
        pairs = _own_columns(image)
        return (F.cross_entropy(to_texts, pairs) + F.cross_entropy(to_images, pairs)) / 2


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, chunk: int | None = None) -> Tensor:
    """Sigmoid loss: each of the B x B pairs is a binary question of its own, in nats (SigLIP, arXiv 2303.15343).

    The loop it vectorises, over the global batch:
        for i, for j: loss -= log_sigmoid((+1 if i == j else -1) * (scale <image_i, text_j> + bias)) / B

    Args:
        image: (b, T) unit rows of this rank.
        text: (b, T) unit rows of this rank, in the same order.
        scale: exp(logit_scale), one number; the paper starts at 10.
        bias: one number, -10 at the start in the paper, because almost all pairs are mismatches.
        chunk: pictures whose logits are in memory at once, forwards and backwards; None: all of this rank's. The questions are
            independent, so nothing else changes.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, scale, bias = image.float(), scale.float(), bias.float()
        texts, pairs = dist.gather(text.float()), _own_columns(image)
        if chunk is None:
            return _pair_questions(image, texts, pairs, scale, bias) / len(image)
        parts = [
            # Made again on the way back, so that only one piece of the logits ever exists.
            # Nothing in it is random, and asking for the generator's state would make a GPU wait.
            checkpoint(_pair_questions, rows, texts, columns, scale, bias, use_reentrant=False, preserve_rng_state=False)
            for rows, columns in zip(image.split(chunk), pairs.split(chunk), strict=True)
        ]
        return torch.stack(parts).sum() / len(image)


def _pair_questions(image: Tensor, texts: Tensor, pairs: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sum over pictures (n, T) and all texts (B, T) of -log sigmoid(+-logit); picture i is matched with text pairs[i]."""
    logits = scale * image @ texts.T + bias
    matched = F.one_hot(pairs, len(texts)).bool()
    return -F.logsigmoid(torch.where(matched, logits, -logits)).sum()


def _own_columns(rows: Tensor) -> Tensor:
    """Where this rank's rows stand in the global batch: (b,) int64."""
    return torch.arange(len(rows), device=rows.device) + dist.rank() * len(rows)
