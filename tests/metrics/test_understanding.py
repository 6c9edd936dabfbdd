from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtp.config import ProbeParams
from vtp.metrics import understanding
from vtp.metrics.understanding import accuracy, factor_accuracy, linear_probe, zero_shot_classifier, zero_shot_predictions

PROBE = ProbeParams(max_samples=1000, penalties=(1e-4, 1e-2, 1.0), iterations=100)


def clusters(seed: int, count: int = 400, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features of 5 classes around fixed centres, with axes of very different scale and one constant axis."""
    centres = torch.randn(5, 8, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    x = centres[labels] + noise * torch.randn(count, 8, generator=generator)
    return torch.cat([x * torch.logspace(-3, 3, 8) + 7, torch.full((count, 1), 3.3)], dim=1), labels


def test_classifier_averages_unit_prompts() -> None:
    text = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])[:, None]
    for row, prompts in zip(zero_shot_classifier(text), text, strict=True):
        mean = sum(prompt / prompt.norm() for prompt in prompts) / 3
        torch.testing.assert_close(row, mean / mean.norm())


def test_predictions_follow_the_angle_not_the_length() -> None:
    classifier = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    images = torch.tensor([[9.0, 1.0], [0.1, 0.09], [-1.0, 0.1]])
    assert zero_shot_predictions(images, classifier).tolist() == [0, 1, 1]


def test_accuracies() -> None:
    factors = [{"colour": c, "shape": s} for c in ("red", "blue") for s in ("star", "ring", "moon")]
    labels, predicted = torch.tensor([0, 1, 2, 5]), torch.tensor([0, 2, 5, 2])
    assert accuracy(predicted, labels) == 0.25
    assert factor_accuracy(predicted, labels, factors, "colour") == 0.5
    assert factor_accuracy(predicted, labels, factors, "shape") == 0.75
    with pytest.raises(ValueError, match="no factor size; it has colour, shape"):
        factor_accuracy(predicted, labels, factors, "size")


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_probe_is_logistic_regression_on_standardised_features(penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = clusters(0)
    ours = linear_probe(x, y, 5, ProbeParams(max_samples=1, penalties=(penalty,), iterations=200), seed=0)
    scaled = StandardScaler().fit_transform(x.double().numpy())
    theirs = LogisticRegression(C=1 / (penalty * len(x)), max_iter=2000, tol=1e-8).fit(scaled, y.numpy())
    np.testing.assert_allclose(ours.weight.numpy()[:, :8], theirs.coef_[:, :8], atol=3e-3)
    np.testing.assert_allclose(ours.logits(x).softmax(1).numpy(), theirs.predict_proba(scaled), atol=3e-3)


def test_constant_features_are_ignored() -> None:
    x, y = clusters(0)
    probe = linear_probe(x, y, 5, PROBE, seed=0)
    assert probe.std[8] == 1
    assert probe.weight[:, 8].abs().max() < 1e-3


def test_penalty_is_chosen_on_the_held_out_tenth() -> None:
    """The choice agrees with a search by hand, and noise calls for a stronger penalty than clean classes."""
    x, y = clusters(1, count=60, noise=4.0)
    x = torch.cat([x, torch.randn(60, 200, generator=torch.Generator().manual_seed(2))], dim=1)
    order = torch.randperm(60, generator=understanding.seeding.generator(3, "probe"))
    held, rest = order[:6], order[6:]
    right = {}
    for penalty in PROBE.penalties:
        alone = ProbeParams(max_samples=1, penalties=(penalty,), iterations=300)
        right[penalty] = accuracy(linear_probe(x[rest], y[rest], 5, alone, seed=0).predict(x[held]), y[held])
    best = max(penalty for penalty in PROBE.penalties if right[penalty] == max(right.values()))
    assert linear_probe(x, y, 5, PROBE, seed=3).penalty == best


def test_probe_repeats_and_generalises() -> None:
    x, y = clusters(0)
    first, again = linear_probe(x, y, 5, PROBE, seed=0), linear_probe(x, y, 5, PROBE, seed=0)
    assert torch.equal(first.weight, again.weight)
    assert first.penalty == again.penalty
    new_x, new_y = clusters(7)
    assert accuracy(first.predict(new_x), new_y) > 0.7
    assert not first.weight.requires_grad


def test_probe_works_under_no_grad_and_refuses_too_few() -> None:
    x, y = clusters(0, count=50)
    with torch.no_grad():
        assert linear_probe(x, y, 5, PROBE, seed=0).predict(x).shape == (50,)
    with pytest.raises(ValueError, match="at least 10"):
        linear_probe(x[:9], y[:9], 5, PROBE, seed=0)
