"""KoLeo's nearest neighbours, chosen by one form of a step and held for another.

A nearest neighbour is a choice: where two of them are about equally near, the last bits of the features decide, and the gradient
jumps with the choice. Two forms of a step can then differ by more than their roundings although both are right. Gradients are
therefore compared for the same neighbours, and the choice is held to a bound of its own: what the other form would have chosen
must be as near as the nearest, up to the rounding of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vtp.objectives import distillation


class Neighbours:
    """Note the neighbours of one form (`noted`), then give them to another (`held`), whose own choice is only looked at."""

    def __init__(self) -> None:
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._others: list[Tensor] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """The plain form runs in here."""

        def choose(x: Tensor, everyone: Tensor) -> Tensor:
            places = chosen(x, everyone)
            self._noted.append((x.detach(), places))
            return places

        chosen = distillation.nearest
        with _instead(choose):
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """The other form runs in here: the same losses in the same order.

        Raises:
            ValueError: it asks for neighbours more or less often.
        """

        def choose(x: Tensor, everyone: Tensor) -> Tensor:
            self._others.append(chosen(x, everyone))
            if len(self._others) > len(self._noted):
                raise ValueError(f"neighbours were asked for more than the {len(self._noted)} times that were noted.")
            return self._noted[len(self._others) - 1][1]

        chosen, self._others = distillation.nearest, []
        with _instead(choose):
            yield
        if len(self._others) < len(self._noted):
            raise ValueError(f"neighbours were asked for {len(self._others)} times, and {len(self._noted)} times were noted.")

    def figures(self) -> dict[str, float]:
        """`neighbours_changed`: share of rows for which the other form chose another neighbour. `neighbour_error`: by how much
        such a choice is farther than the nearest at most, as a difference of cosines in the features of the plain form."""
        pairs = [(x, places, own) for (x, places), own in zip(self._noted, self._others, strict=True)]
        if not pairs:
            return {"neighbours_changed": 0.0, "neighbour_error": 0.0}
        changed = torch.cat([places != own for _, places, own in pairs])
        farther = torch.cat([(x * (x[places] - x[own])).sum(1) for x, places, own in pairs])
        return {"neighbours_changed": float(changed.double().mean()), "neighbour_error": float(farther.max())}


@contextmanager
def _instead(choose: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """KoLeo asks `choose` for its neighbours."""
    before = distillation.nearest
    distillation.nearest = choose  # type: ignore[assignment]
    try:
        yield
    finally:
        distillation.nearest = before
