"""What an encoder's features know: zero-shot classification by prompts (CLIP, arXiv 2103.00020) and linear probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtp import seeding
from vtp.config import ProbeParams


def zero_shot_classifier(text_features: Tensor) -> Tensor:
    """One direction for each class from its prompts: (classes, templates, T) -> (classes, T), unit length."""
    return F.normalize(F.normalize(text_features.float(), dim=-1).mean(1), dim=-1)


def zero_shot_predictions(image_features: Tensor, classifier: Tensor) -> Tensor:
    """The class of largest cosine similarity: (n, T) and (classes, T) -> (n,) int64."""
    return (F.normalize(image_features.float(), dim=-1) @ classifier.T).argmax(1)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Fraction of equal entries of two (n,)."""
    return (predicted == labels).double().mean().item()


def factor_accuracy(predicted: Tensor, labels: Tensor, factors: Sequence[Mapping[str, str]], name: str) -> float:
    """Fraction of pictures whose predicted class shares factor `name` (say, the colour) with their own class.

    Args:
        predicted, labels: (n,) classes.
        factors: by class, the values of its factors.

    Raises:
        ValueError: a class has no factor `name`.
    """
    for label, values in enumerate(factors):
        if name not in values:
            raise ValueError(f"class {label} has no factor {name}; it has {', '.join(values) or 'none'}.")
    numbers = {value: number for number, value in enumerate(sorted({values[name] for values in factors}))}
    by_class = torch.tensor([numbers[values[name]] for values in factors], device=labels.device)
    return accuracy(by_class[predicted], by_class[labels])


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardised features: weight (classes, F), bias (classes,), mean and std (F,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    penalty: float

    def logits(self, x: Tensor) -> Tensor:
        """Features (n, F) -> (n, classes)."""
        return F.linear((x.float() - self.mean) / self.std, self.weight, self.bias)

    def predict(self, x: Tensor) -> Tensor:
        """Features (n, F) -> classes (n,) int64."""
        return self.logits(x).argmax(1)


def linear_probe(train_x: Tensor, train_y: Tensor, num_classes: int, probe: ProbeParams, seed: int) -> Probe:
    """Multinomial logistic regression on frozen features, its penalty chosen on a held-out tenth of the training pictures.

    The penalty that classifies most of the tenth wins, the stronger one of equals; the probe is then fitted to all of `train_x`.
    Validation pictures play no part. Full batches and no random numbers but the choice of the tenth, which `seed` fixes.

    Args:
        train_x, train_y: features (n, F), labels (n,).
        probe: `penalties` p weigh p / 2 |weight|^2 against the mean cross-entropy in nats; `iterations` of L-BFGS at most for
            each fit. `max_samples` is for whoever extracts the features.

    Raises:
        ValueError: fewer than ten pictures.
    """
    count = len(train_x)
    if count < 10:
        raise ValueError(f"{count} pictures are too few for a linear probe; it needs at least 10.")
    order = torch.randperm(count, generator=seeding.generator(seed, "probe")).to(train_x.device)
    held, rest = order[: count // 10], order[count // 10 :]
    best, chosen, start = -1.0, probe.penalties[0], None
    # Autocast would go on using its first bfloat16 copy of weights that change within the block.
    with torch.autocast(train_x.device.type, enabled=False):
        for penalty in sorted(probe.penalties, reverse=True):
            start = _fit(train_x[rest], train_y[rest], num_classes, penalty, probe.iterations, start)
            right = accuracy(start.predict(train_x[held]), train_y[held])
            if right > best:
                best, chosen = right, penalty
        return _fit(train_x, train_y, num_classes, chosen, probe.iterations, None)


def _fit(x: Tensor, y: Tensor, num_classes: int, penalty: float, iterations: int, start: Probe | None) -> Probe:
    """One fit by L-BFGS from zero, or from the fit of a stronger penalty."""
    x = x.float()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6 * x.abs().amax(0), std, torch.ones_like(std))  # a constant feature says nothing
    x = (x - mean) / std
    weight = start.weight.clone() if start else x.new_zeros(num_classes, x.shape[1])
    bias = start.bias.clone() if start else x.new_zeros(num_classes)
    solver = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)
    return Probe(weight.detach(), bias.detach(), mean, std, penalty)
