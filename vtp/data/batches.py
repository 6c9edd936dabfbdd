"""Batches of a prepared split, addressed by step: any step at once, the same whatever the number of loading processes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vtp import dist, seeding, stopping
from vtp.data.order import Order
from vtp.data.shards import Split


class Batches:
    """This rank's rows of the global batch of each step.

    Args:
        split: the samples.
        batch: pictures of a global batch; divides over the ranks.
        seed: the run's seed, which fixes the order.
        workers: loading processes; 0 decodes in this one.
        shards_per_window: shards whose samples are shuffled together.
        fraction: the share of the samples that is ever visited.
    """

    def __init__(
        self, split: Split, *, batch: int, seed: int, workers: int, shards_per_window: int = 8, fraction: float = 1.0
    ) -> None:
        self.seed, self.workers = seed, workers
        # The slice is fixed here, since a loading process may know nothing of ranks.
        self.steps = _Steps(split, Order(split.shard_lengths, seed, shards_per_window, fraction), batch, dist.rows(batch))

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, Tensor]]:
        """Batches of steps [start, stop): images (b, 3, S, S) uint8, tokens (b, L) int64, labels (b) int64; b = batch / ranks."""
        loader = DataLoader(
            self.steps,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=self.workers,
            worker_init_fn=_begin,
            prefetch_factor=4 if self.workers else None,
            generator=seeding.generator(self.seed, "loader"),  # otherwise it would draw from the global one
        )
        return iter(loader)


def _begin(worker: int) -> None:
    stopping.ignore()


class _Steps(Dataset):
    def __init__(self, split: Split, order: Order, batch: int, rows: slice) -> None:
        self.split, self.order, self.batch, self.rows = split, order, batch, rows

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        first = step * self.batch
        samples = self.order.positions(first + self.rows.start, first + self.rows.stop)
        return self.split.rows(samples)
