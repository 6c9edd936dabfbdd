"""The order of the data as a function of (seed, epoch, step): shards shuffled, samples shuffled within windows of shards.

An epoch visits every sample once. Reading stays within one window of shards at a time, so files are read nearly in sequence, and
any place of the endless stream of epochs is computed directly: resuming skips nothing and replays nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from vtp import seeding


class Order:
    """Sample indices at the positions of an endless stream of epochs.

    Args:
        shard_lengths: samples in each shard; sample indices count through the shards in this order.
        seed: the run's seed.
        window: shards whose samples are shuffled together.
        fraction: the share of each shard that is ever visited, evenly spread over it, at least one sample; above 0, at most 1.

    Raises:
        ValueError: there is no sample at all.
    """

    def __init__(self, shard_lengths: Sequence[int], seed: int, window: int, fraction: float = 1.0) -> None:
        if sum(shard_lengths) == 0:
            raise ValueError("the split holds no samples; look at quarantine.parquet of the prepared data.")
        self.shard_lengths, self.seed, self.window, self.fraction = list(shard_lengths), seed, window, fraction
        self.first = [0, *accumulate(self.shard_lengths)]
        self.visited = [length and max(1, round(length * fraction)) for length in self.shard_lengths]
        self.num_samples = sum(self.visited)
        self._layout = lru_cache(2)(self._make_layout)
        self._shuffled = lru_cache(4)(self._make_shuffled)

    def __reduce__(self) -> tuple:
        return Order, (self.shard_lengths, self.seed, self.window, self.fraction)

    def positions(self, start: int, stop: int) -> Tensor:
        """Indices of the samples at positions [start, stop) of the stream: (stop - start,) int64."""
        parts = []
        while start < stop:
            epoch, within = divmod(start, self.num_samples)
            _, starts = self._layout(epoch)
            number = bisect_right(starts, within) - 1
            indices = self._shuffled(epoch, number)
            offset = within - starts[number]
            parts.append(indices[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def coming(self, position: int) -> list[int]:
        """Shards of the window that `position` lies in, and of the one after it."""
        epoch, within = divmod(position, self.num_samples)
        windows, starts = self._layout(epoch)
        number = bisect_right(starts, within) - 1
        after = windows[number + 1] if number + 1 < len(windows) else self._layout(epoch + 1)[0][0]
        return windows[number] + after

    def _make_layout(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        """Shards of each window of an epoch, and the position within the epoch at which each window starts."""
        shards = torch.randperm(len(self.shard_lengths), generator=seeding.generator(self.seed, "order", epoch)).tolist()
        shards = [shard for shard in shards if self.shard_lengths[shard]]
        windows = [shards[i : i + self.window] for i in range(0, len(shards), self.window)]
        sizes = [sum(self.visited[shard] for shard in window) for window in windows]
        return windows, [0, *accumulate(sizes[:-1])]

    def _make_shuffled(self, epoch: int, number: int) -> Tensor:
        """Sample indices of one window of an epoch, shuffled."""
        window = self._layout(epoch)[0][number]
        indices = torch.cat([self._samples(shard) for shard in window])
        return indices[torch.randperm(len(indices), generator=seeding.generator(self.seed, "order", epoch, number))]

    def _samples(self, shard: int) -> Tensor:
        """The samples of a shard that are visited, in ascending order."""
        count = self.visited[shard]
        return self.first[shard] + torch.arange(count) * self.shard_lengths[shard] // count
