from __future__ import annotations

import pytest
import torch

from benchmarks.solvers import CALLS, FINE, Distance, Row, choices, curve, distance_and_error, table
from vtp.metrics.generation import frechet
from vtp.sampling import SOLVERS
from vtp.seeding import generator


def features(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    draw = generator(seed, "features")
    return torch.randn(count, 6, generator=draw) @ torch.randn(6, 6, generator=generator(0, "mix")) + shift


def test_distances_are_those_of_the_library() -> None:
    reference, found = features(1, 200), features(2, 150, 0.3)
    once = torch.ones(len(found))
    assert Distance(reference)(found, once) == pytest.approx(frechet(found, reference), rel=1e-6)
    twice = torch.arange(len(found)) % 3
    assert Distance(reference)(found, twice) == pytest.approx(frechet(found.repeat_interleave(twice, 0), reference), rel=1e-6)


def test_the_error_is_what_other_samples_would_change() -> None:
    distance = Distance(features(0, 4000))
    drawn = [distance_and_error(distance, features(seed, 500, 0.5)) for seed in range(1, 13)]
    spread = torch.tensor([value for value, _ in drawn]).std()
    assert torch.tensor([error for _, error in drawn]).mean() == pytest.approx(spread.item(), rel=0.5)


def test_every_choice_spends_its_budget() -> None:
    assert set(CALLS) | {"dopri5"} == set(SOLVERS)
    for name, points in choices([6, 12]):
        assert (points - 1) * CALLS[name] in (6, 12)
    assert {name for name, _ in choices([6])} == set(CALLS)
    assert (FINE[1] - 1) * CALLS[FINE[0]] > 48


def test_the_table_and_the_curve_hold_every_row(tmp_path) -> None:
    rows = [Row("euler", 7, 6, 2.0, 0.1, 0.2, 1.0), Row("heun", 4, 6, 1.0, 0.1, 0.1, 1.0)]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| heun | 4 | 6 | 1.000 ± 0.100 |")
    curve(rows, tmp_path / "solvers.png")
    assert (tmp_path / "solvers.png").stat().st_size > 1000
