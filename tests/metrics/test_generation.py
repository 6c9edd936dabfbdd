from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vtp import seeding
from vtp.metrics.generation import compare, frechet, inception
from vtp.models.frozen import INCEPTION

ORACLE = Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors"


def describe(pictures: Tensor) -> tuple[Tensor, Tensor]:
    features = F.avg_pool2d(pictures.float() / 255, 4).flatten(1)
    return features, 20 * features[:, :5]


def pictures(seed: int, low: int = 0, count: int = 1000) -> Tensor:
    """Smooth random pictures between `low` and 255."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return (low + (255 - low) * F.interpolate(coarse, size=8)).to(torch.uint8)


def test_frechet_distance_of_published_formula() -> None:
    oracle = load_file(ORACLE)
    value = frechet(oracle["fid.act1"], oracle["fid.act2"])
    assert value == pytest.approx(oracle["fid.value"].item(), rel=1e-6)


def test_frechet_distance_of_known_gaussians() -> None:
    """Equal covariances: the squared distance of the means; equal means: (sqrt(a) - sqrt(b))^2 for each axis."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet(x, x + 2) == pytest.approx(16, rel=1e-6)
    deviation = (x - x.mean(0)).square().sum(0) / 499
    assert frechet(x - x.mean(0), 3 * (x - x.mean(0))) == pytest.approx(4 * deviation.sum().item(), rel=1e-6)


def test_set_against_itself_against_its_like_and_against_another() -> None:
    same = compare(pictures(0), pictures(0), describe, batch=300)
    like = compare(pictures(1), pictures(0), describe, batch=300)
    unlike = compare(pictures(1, low=100), pictures(0), describe, batch=300)
    assert set(same) == {"frechet", "kid", "score", "precision", "recall"}
    assert same["frechet"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == 1
    assert same["frechet"] < like["frechet"] < unlike["frechet"]
    assert abs(like["kid"]) < unlike["kid"] / 10
    assert like["recall"] > unlike["recall"]


def test_order_of_the_two_sets_is_samples_then_reference() -> None:
    """Samples of half the range lie among the reference's, which they do not cover."""
    values = compare(pictures(1, low=128), pictures(0), describe, batch=300)
    assert values["precision"] > values["recall"]


def test_distances_are_taken_on_the_features_and_score_on_the_logits() -> None:
    a, b = pictures(1), pictures(0)
    values = compare(a, b, describe, batch=300)
    assert values["frechet"] == pytest.approx(frechet(describe(a)[0], describe(b)[0]), rel=1e-4)
    shifted = compare(a, b, lambda batch: (describe(batch)[0], 0 * describe(batch)[1]), batch=300)
    assert shifted["score"] == pytest.approx(1)
    assert values["score"] > 1.1
    assert {k: v for k, v in shifted.items() if k != "score"} == {k: v for k, v in values.items() if k != "score"}


def test_repeats_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with seeding.forked(0, "test"):
        network = torch.nn.Linear(192, 5)
    state = torch.get_rng_state()

    def learned(batch: Tensor) -> tuple[Tensor, Tensor]:
        features = batch.flatten(1).float() / 255
        return features[:, ::8], network(features).detach()

    first, again = (compare(pictures(1), pictures(0), learned, batch=300) for _ in range(2))
    assert first == again
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert network.training
    assert network.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_what_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = pictures(0)
    with pytest.raises(ValueError, match="samples holds 999"):
        compare(full[1:], full, describe, batch=300)
    with pytest.raises(ValueError, match="equally many"):
        compare(torch.cat([full, full]), full, describe, batch=300)
    with pytest.raises(ValueError, match=r"reference is torch\.float32"):
        compare(full, full.float(), describe, batch=300)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05"):
        inception()


def test_inception_describes_pictures_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    loaded: list[dict[str, Tensor]] = []
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: loaded.append(state))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"marker": torch.ones(1)}, tmp_path / "checkpoints" / INCEPTION)
    state = torch.get_rng_state()
    with torch.no_grad():
        features, logits = inception()(pictures(0, count=2))
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert [list(given) for given in loaded] == [["marker"]]
    assert torch.equal(torch.get_rng_state(), state)
