from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vtp import seeding
from vtp.metrics.generation import Described, compare, frechet, inception
from vtp.models.frozen import INCEPTION

ORACLE = Path(__file__).parents[1] / "oracles" / "image_ops" / "io.safetensors"


def describe(pictures: Tensor) -> tuple[Tensor, Tensor]:
    features = F.avg_pool2d(pictures.float() / 255, 4).flatten(1)
    return features, 20 * features[:, :5]


def pictures(seed: int, low: int = 0, count: int = 1000) -> Tensor:
    """Smooth random pictures between `low` and 255."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return (low + (255 - low) * F.interpolate(coarse, size=8)).to(torch.uint8)


def seen(seed: int, low: int = 0, count: int = 1000) -> Described:
    return Described(*describe(pictures(seed, low, count)))


def test_all_figures_are_those_of_the_library_on_the_pictures() -> None:
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import register_feature_extractor

    class Given(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, str]:
            return "features", "logits"

        def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(("features", "logits"), describe(batch), strict=True))
            return tuple(given[name].double() for name in self.features_list)

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, i: int) -> Tensor:
            return self.rows[i]

    register_feature_extractor("for-a-test", Given)
    with seeding.forked(0, "test"):  # its loader draws from the global generator
        theirs = calculate_metrics(
            input1=Pictures(pictures(1, low=60)),
            input2=Pictures(pictures(0)),
            **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
            **{f"feature_layer_{metric}": "features" for metric in ("fid", "kid", "prc")},
            feature_layer_isc="logits",
            feature_extractor="for-a-test",
            kid_subset_size=500,
            rng_seed=0,
            batch_size=300,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
    ours = compare(seen(1, low=60), seen(0))
    assert ours == {
        "frechet": pytest.approx(theirs["frechet_inception_distance"], rel=1e-9),
        "kid": pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9),
        "score": pytest.approx(theirs["inception_score_mean"], rel=1e-9),
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }


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
    same, like, unlike = compare(seen(0), seen(0)), compare(seen(1), seen(0)), compare(seen(1, low=100), seen(0))
    assert set(same) == {"frechet", "kid", "score", "precision", "recall"}
    assert same["frechet"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == 1
    assert same["frechet"] < like["frechet"] < unlike["frechet"]
    assert abs(like["kid"]) < unlike["kid"] / 10
    assert like["recall"] > unlike["recall"]


def test_order_of_the_two_sets_is_samples_then_reference() -> None:
    """Samples of half the range lie among the reference's, which they do not cover."""
    values = compare(seen(1, low=128), seen(0))
    assert values["precision"] > values["recall"]


def test_distances_are_taken_on_the_features_and_score_on_the_logits() -> None:
    a, b = seen(1), seen(0)
    values = compare(a, b)
    assert values["frechet"] == pytest.approx(frechet(a.features, b.features))
    shifted = compare(Described(a.features, 0 * a.logits), Described(b.features, 0 * b.logits))
    assert shifted["score"] == pytest.approx(1)
    assert values["score"] > 1.1
    assert {k: v for k, v in shifted.items() if k != "score"} == {k: v for k, v in values.items() if k != "score"}


def test_repeats_and_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first, again = (compare(seen(1), seen(0)) for _ in range(2))
    assert first == again
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_what_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="samples holds 999"):
        compare(seen(0, count=999), seen(0))
    with pytest.raises(ValueError, match="2000 samples against 1000 reference pictures"):
        compare(seen(0, count=2000), seen(0))
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
