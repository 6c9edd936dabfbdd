from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vtp import dist
from vtp.metrics.features import extract

PICTURES = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def moments(pictures: Tensor) -> Tensor:
    pixels = pictures.double().flatten(1)
    return torch.stack([pixels.mean(1), pixels.std(1)], dim=1)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_every_picture_once_in_order(batch: int) -> None:
    rows = extract(moments, PICTURES.__getitem__, 11, batch=batch)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, moments(PICTURES).float())


@pytest.mark.parametrize("world", [2, 3, 8, 16])
def test_ranks_cover_the_set_exactly(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world", lambda: world)
    shares: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        shares.append(value)
        return value

    for rank in range(world):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "gather", keep)
        extract(moments, PICTURES.__getitem__, 11, batch=2)
    monkeypatch.setattr(dist, "gather", lambda value: torch.cat(shares))
    torch.testing.assert_close(extract(moments, PICTURES.__getitem__, 11, batch=2), moments(PICTURES).float())


def test_no_pictures() -> None:
    with pytest.raises(ValueError, match="count"):
        extract(moments, PICTURES.__getitem__, 0, batch=2)
