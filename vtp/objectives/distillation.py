"""Self-distillation: a student predicts what its averaged teacher assigns to K prototypes.

DINO (arXiv 2104.14294) compares whole crops, iBOT (arXiv 2111.07832) hidden patches, KoLeo (arXiv 1806.03198) spreads the
features; their composition and constants are those of DINOv2 (arXiv 2304.07193). Crops are laid out view- or crop-major: all
pictures of the first view, then all pictures of the second. A loss is a per-rank number whose mean over ranks is the loss of the
global batch; targets, centres and neighbours are taken over the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtp import dist
from vtp.compiling import compilable


class Prices(NamedTuple):
    """How a teacher's scores become probabilities in one step: see `teacher_targets`."""

    temperature: Tensor
    cls: Tensor
    """(K,) of whole crops."""
    patches: Tensor
    """(K,) of hidden patches."""


Score = Callable[[Tensor], Tensor]
"""Features (n, d) to scores against K prototypes (n, K), linear in the features."""


@torch.no_grad()
def teacher_targets(scores: Tensor, temperature: Tensor | float, prices: Tensor) -> Tensor:
    """Teacher probabilities softmax(scores / temperature - prices): (n, K) float32.

    Args:
        scores: (n, K).
        prices: (K,) what each prototype costs, in nats: `sinkhorn_prices`, or a running centre / temperature (DINO).
    """
    return F.softmax(scores.float() / temperature - prices, dim=-1)


@torch.no_grad()
def sinkhorn_prices(
    score: Score,
    features: Sequence[Tensor],
    temperature: Tensor | float,
    *,
    valid: Sequence[Tensor] | None = None,
    iterations: int = 3,
) -> Tensor:
    """Prices at which the prototypes are used about equally often by the rows of all ranks (SwAV, arXiv 2006.09882): (K,) nats.

    The loop it vectorises, over the rows of all ranks and pieces; `teacher_targets` takes its last line:
        q[i][k] = exp(scores[i][k] / temperature)
        repeat: for k: q[:, k] /= sum_i q[i][k]         each prototype gets the same mass
                for i: q[i, :] /= sum_k q[i][k]         each row is a distribution
    It is carried out on log q, where neither a large score nor a prototype that is far from every row can leave the range of
    float32; constant factors (1/K, 1/B) cancel in the last normalisation and are left out. Only the factors of the columns, the
    prices, are kept: scores are taken again from the features in every round, so that batches whose scores fill no memory at
    once can be balanced as a whole.

    Args:
        features: pieces (n, d) of this rank's rows.
        valid: for each piece (n,) bool, False for padding: such rows take no part. Without a valid row on any rank prices are 0.
    """
    prices = torch.zeros((), device=features[0].device)
    for i in range(iterations):
        masses = []
        for j, piece in enumerate(features):
            q = score(piece).float() / temperature - prices
            if i:
                q -= q.logsumexp(dim=1, keepdim=True)
            if valid is not None:
                q.masked_fill_(~valid[j][:, None], -torch.inf)
            masses.append(q.logsumexp(dim=0))
        mass = dist.gather(torch.stack(masses)).logsumexp(dim=0)
        prices = prices + torch.where(mass.isfinite(), mass, 0.0)
    return prices


@torch.no_grad()
def updated_centre(
    centre: Tensor, score: Score, features: Sequence[Tensor], momentum: float, *, valid: Sequence[Tensor] | None = None
) -> Tensor:
    """The running mean of teacher scores after this step: momentum * centre + (1 - momentum) * mean of all ranks' rows.

    The mean of scores is the score of the mean, scores being linear. Differs from DINOv2 for iBOT, whose centre averages the
    ranks' means: here each row counts the same on whatever rank it lies.

    Args:
        centre: (K,) running mean before this step.
        features: pieces (n, d) of this rank's rows.
        valid: for each piece (n,) bool, False for padding. Without a valid row on any rank the centre stays.
    """
    if valid is None:
        valid = [torch.ones(len(piece), dtype=torch.bool, device=centre.device) for piece in features]
    with torch.autocast(centre.device.type, enabled=False):
        sums = [piece.float().masked_fill(~own[:, None], 0).sum(dim=0) for piece, own in zip(features, valid, strict=True)]
        rows = dist.total(torch.stack([own.sum() for own in valid]).sum())
        mean = dist.total(torch.stack(sums).sum(dim=0)) / rows.clamp(min=1)
        return torch.where(rows > 0, momentum * centre.float() + (1 - momentum) * score(mean).float(), centre.float())


def dino_local_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every local crop against the teacher on both global crops, in nats.

    The loop it vectorises:
        for crop: for view: loss -= mean_i sum_k targets[view, i, k] log_softmax(student[crop, i] / temperature)[k]
        loss /= 2 * crops + 2
    The divisor counts the two terms of `dino_global_loss` too, so that the sum of the two losses is a mean over pairs of crops.

    Args:
        student: (crops * b, K) scores, crop-major.
        targets: (2, b, K) teacher probabilities.
    """
    rows = targets.shape[1]
    crops = len(student) // rows
    log_p = F.log_softmax(student.float() / temperature, dim=-1).view(crops, rows, targets.shape[2])
    return -(log_p.sum(dim=0) * targets.float().sum(dim=0)).sum() / rows / (2 * crops + 2)


def dino_global_loss(student: Tensor, targets: Tensor, temperature: float, *, num_local: int) -> Tensor:
    """Cross-entropy of each global crop against the teacher on the *other* global crop, in nats.

    The loop it vectorises:
        for view in 0, 1: loss -= mean_i sum_k targets[1 - view, i, k] log_softmax(student[view, i] / temperature)[k]
        loss /= 2 * num_local + 2

    Args:
        student: (2b, K) scores, view-major.
        targets: (2, b, K) teacher probabilities, in the order of the teacher's own views.
        num_local: local crops per picture, for the divisor shared with `dino_local_loss`.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=-1).view_as(targets)
    return -(log_p * targets.float().flip(0)).sum() / targets.shape[1] / (2 * num_local + 2)


def ibot_loss(student: Tensor, targets: Tensor, weights: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Cross-entropy of hidden patches against the teacher that saw them, in nats.

    The loop it vectorises:
        for i: loss -= weights[i] * sum_k targets[i, k] log_softmax(student[i] / temperature)[k] / num_crops

    Args:
        student: (m, K) scores of this rank's hidden patches.
        targets: (m, K) teacher probabilities of the same patches.
        weights: (m,) 1 / (hidden patches of the crop), 0 for padding.
        num_crops: global crops of this rank, those without hidden patches included.
    """
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    return -((log_p * targets.float()).sum(dim=-1) * weights.float()).sum() / num_crops


@compilable
def distillation_losses(
    student: Tensor, teacher_cls: Tensor, teacher_patches: Tensor, prices: Prices, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """DINO over all crops and iBOT, from scores: as one function, so that compiled it stores no probabilities.

    Args:
        student: (2n + m + crops * n, K) scores of global crops, of hidden patches, of local crops.
        teacher_cls, teacher_patches: (2n, K) and (m, K) scores of the global crops and the same patches.
        weights: (m,) of the patches; see `ibot_loss`.
        temperature: of the student.
    """
    rows, hidden = len(teacher_cls), len(teacher_patches)
    whole, patches, local = student.split([rows, hidden, len(student) - rows - hidden])
    targets = teacher_targets(teacher_cls, prices.temperature, prices.cls).unflatten(0, (2, -1))
    dino = dino_global_loss(whole, targets, temperature, num_local=2 * len(local) // rows)
    if len(local):
        dino = dino + dino_local_loss(local, targets, temperature)
    known = teacher_targets(teacher_patches, prices.temperature, prices.patches)
    return dino, ibot_loss(patches, known, weights, rows, temperature)


def koleo_loss(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko entropy estimate: pushes each feature away from its nearest neighbour (arXiv 1806.03198).

    The loop it vectorises, over the unit rows x of all ranks:
        for i: j = argmax_{j != i} <x_i, x_j>;  loss -= log(|x_i - x_j + 1e-8| + 1e-8) / B
    Gradients flow to both ends. Differs from DINOv2, whose neighbours lie on the same rank.

    Args:
        features: (b, D) of one view, of any length, this rank's rows.
    """
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1, eps=1e-8)
        everyone = dist.gather(x)
        distance = torch.linalg.vector_norm(x - everyone[nearest(x, everyone)] + 1e-8, dim=-1)
        return -(distance + 1e-8).log().mean()


@torch.no_grad()
def nearest(x: Tensor, everyone: Tensor) -> Tensor:
    """For each unit row of this rank, x (b, D), the place of its nearest other among the rows of all ranks: (b,) int64."""
    cosine = x @ everyone.T
    cosine.diagonal(dist.rank() * len(x)).fill_(-torch.inf)
    return cosine.argmax(dim=1)
