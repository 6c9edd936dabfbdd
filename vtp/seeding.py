"""Random numbers as a function of (seed, purpose, step).

A draw is made for the *global* batch from a generator that nothing else uses, then sliced by rank. Ranks, micro-batches and
interruptions never enter the key, so they cannot change what is drawn. No module of the project uses the global generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vtp import dist


def fold(seed: int, *keys: str | int) -> int:
    """A 63-bit seed that depends on every key, the same on every machine."""
    text = "/".join(str(key) for key in (seed, *keys))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *keys: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: `generator(seed, "init")`, `generator(seed, "order", epoch)`."""
    return torch.Generator(device).manual_seed(fold(seed, *keys))


@contextmanager
def forked(seed: int, *keys: str | int) -> Iterator[None]:
    """Run third-party code that insists on the global generator, and leave that generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(fold(seed, *keys))
        yield


Key = tuple[str | int, ...]


class Draws:
    """The random numbers of one step: each purpose has a generator of its own, every tensor is this rank's rows of a global one.

    Args:
        seed: the run's seed.
        step: the absolute step, counted from 0.
        device: where the tensors are drawn and live.
    """

    def __init__(self, seed: int, step: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.device = seed, step, torch.device(device)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh generator for `purpose`; asking twice gives the same numbers twice."""
        return generator(self.seed, purpose, self.step, device=self.device)

    def scheduled(self, name: str, value: Callable[[int], float]) -> Tensor:
        """A number that follows the step, as a 0-d float32 tensor."""
        return self._made(("scheduled", name), lambda: torch.full((), value(self.step), dtype=torch.float32, device=self.device))

    def order(self, purpose: str, total: int) -> Tensor:
        """The place of each row of the whole global batch in a random order: (total,) int64, the same on every rank."""
        drawn = self._made(
            ("order", purpose, total), lambda: torch.rand(total, generator=self.generator(purpose), device=self.device)
        )
        return drawn.argsort(stable=True).argsort()

    def common(self, purpose: str, count: int) -> Tensor:
        """U(0, 1) that belong to no row and are the same on every rank: (count,)."""
        return self._made(
            ("common", purpose, count), lambda: torch.rand(count, generator=self.generator(purpose), device=self.device)
        )

    def uniform(self, purpose: str, total: int, *shape: int) -> Tensor:
        """U(0, 1) for this rank's rows of a global batch of `total`: (total / W, *shape)."""
        drawn = self._made(
            ("uniform", purpose, total, *shape),
            lambda: torch.rand(total, *shape, generator=self.generator(purpose), device=self.device),
        )
        return drawn[dist.rows(total, purpose)]

    def normal(self, purpose: str, total: int, *shape: int) -> Tensor:
        """N(0, 1) for this rank's rows of a global batch of `total`: (total / W, *shape)."""
        drawn = self._made(
            ("normal", purpose, total, *shape),
            lambda: torch.randn(total, *shape, generator=self.generator(purpose), device=self.device),
        )
        return drawn[dist.rows(total, purpose)]

    def subset(self, purpose: str, total: int, count: int) -> Tensor:
        """Rows of this rank that take part in a random subset of the global batch: (count / W,) int64, ascending.

        One row is drawn from each run of `total / count` neighbours, so that every rank holds equally many of them whatever the
        number of ranks; the order of the data is random already.

        Raises:
            ValueError: `count` does not divide `total`, or does not divide over the ranks.
        """
        if total % count:
            raise ValueError(f"{purpose}: a subset of {count} does not divide a batch of {total}; use a divisor of {total}.")
        stride = total // count
        offsets = self._made(
            ("subset", purpose, total, count),
            lambda: torch.randint(stride, (count,), generator=self.generator(purpose), device=self.device),
        )
        mine = dist.rows(count, purpose)
        return offsets[mine] + stride * torch.arange(mine.stop - mine.start, device=self.device)

    def _made(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        return make()


class HeldDraws(Draws):
    """Draws whose tensors stay where they are: `at(step)` fills them anew, and a recorded step reads what is there."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(seed, 0, device)
        self._held: dict[Key, tuple[Tensor, Callable[[], Tensor]]] = {}

    def at(self, step: int) -> None:
        """Draw for `step` everything that was ever asked for."""
        self.step = step
        for tensor, make in self._held.values():
            tensor.copy_(make())

    def _made(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._held:
            self._held[key] = make(), make
        return self._held[key][0]
