"""Self-distillation: a student predicts what its averaged teacher assigns to K prototypes.

DINO (arXiv 2104.14294) compares whole crops, iBOT (arXiv 2111.07832) hidden patches, KoLeo (arXiv 1806.03198) spreads the
features; their composition and constants are those of DINOv2 (arXiv 2304.07193). Crops are laid out view- or crop-major: all
pictures of the first view, then all pictures of the second. A loss is a per-rank number whose mean over ranks is the loss of the
global batch; targets, centres and neighbours are taken over the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtp import dist


@torch.no_grad()
def sinkhorn_targets(logits: Tensor, temperature: float, iterations: int = 3, valid: Tensor | None = None) -> Tensor:
    """Teacher probabilities, balanced so that the prototypes are used equally often (SwAV, arXiv 2006.09882).

    The loop it vectorises, over the rows of all ranks:
        q[i][k] = exp(logits[i][k] / temperature)
        repeat: for k: q[:, k] /= sum_i q[i][k]         each prototype gets the same mass
                for i: q[i, :] /= sum_k q[i][k]         each row is a distribution
    It is carried out on log q, where neither a large logit nor a prototype that is far from every row can leave the range of
    float32; constant factors (1/K, 1/B) cancel in the last normalisation and are left out.

    Args:
        logits: (n, K) teacher scores of this rank's rows.
        valid: (n,) bool, False for padding: such rows take no part, and their targets are zero.

    Returns:
        (n, K) float32, valid rows sum to 1.
    """
    q = logits.float() / temperature
    if valid is not None:
        q.masked_fill_(~valid[:, None], -torch.inf)
    least = torch.finfo(q.dtype).min  # keeps log(0) - log(0) of padding, or of a batch without valid rows, at log(0)
    for _ in range(iterations):
        q -= dist.gather(q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0).clamp(min=least)
        q -= q.logsumexp(dim=1, keepdim=True).clamp(min=least)
    return q.exp_()


@torch.no_grad()
def centred_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Teacher probabilities softmax((logits - centre) / temperature): (n, K), with the centre (K,) of the steps before."""
    return F.softmax((logits.float() - centre.float()) / temperature, dim=-1)


@torch.no_grad()
def updated_centre(centre: Tensor, logits: Tensor, momentum: float, valid: Tensor | None = None) -> Tensor:
    """The running mean of teacher scores after this step: momentum * centre + (1 - momentum) * mean of all ranks' rows.

    Differs from DINOv2 for iBOT, whose centre averages the ranks' means: here each row counts the same on whatever rank it lies.

    Args:
        centre: (K,) running mean before this step.
        logits: (n, K) teacher scores of this rank's rows.
        valid: (n,) bool, False for padding. Without a valid row on any rank the centre stays.
    """
    logits = logits.float()
    if valid is None:
        valid = logits.new_ones(len(logits), dtype=torch.bool)
    rows = dist.total(valid.sum())
    mean = dist.total(logits.masked_fill(~valid[:, None], 0).sum(dim=0)) / rows.clamp(min=1)
    return torch.where(rows > 0, momentum * centre.float() + (1 - momentum) * mean, centre.float())


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
        with torch.no_grad():
            cosine = x @ everyone.T
            cosine.diagonal(dist.rank() * len(x)).fill_(-torch.inf)
            nearest = cosine.argmax(dim=1)
        distance = torch.linalg.vector_norm(x - everyone[nearest] + 1e-8, dim=-1)
        return -(distance + 1e-8).log().mean()
