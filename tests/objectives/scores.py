"""Targets and centres of scores that are given, where the library takes features and a linear map to scores."""

from __future__ import annotations

from torch import Tensor

from vtp.objectives.distillation import sinkhorn_prices, teacher_targets, updated_centre


def same(scores: Tensor) -> Tensor:
    """The linear map of scores that are the features themselves."""
    return scores


def sinkhorn_targets(logits: Tensor, temperature: float, iterations: int = 3, valid: Tensor | None = None) -> Tensor:
    prices = sinkhorn_prices(same, [logits], temperature, iterations=iterations, valid=None if valid is None else [valid])
    return teacher_targets(logits, temperature, prices)


def centred_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    return teacher_targets(logits, temperature, centre / temperature)


def next_centre(centre: Tensor, logits: Tensor, momentum: float, valid: Tensor | None = None) -> Tensor:
    return updated_centre(centre, same, [logits], momentum, valid=None if valid is None else [valid])
