"""Batches of a prepared split, addressed by step: any step at once, the same whatever the number of loading processes."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vtp import dist, seeding, stopping
from vtp.data.order import Order
from vtp.data.shards import Split

Batch = dict[str, Tensor]

PIECE = 64
"""Pictures below which a batch is not worth dividing among loading processes."""

AHEAD = 2
"""Batches put together in the background while one is used."""

PREFETCH = 4
"""Pieces that each loading process works ahead."""

FETCHERS = 2
"""Tars that are fetched at the same time, before they are needed."""


class Batches:
    """This rank's rows of the global batch of each step.

    Loading processes start once and serve all epochs. They share the work of a batch, so that the first one is there soon and
    what is loaded ahead does not grow with their number. On a GPU batches lie in pinned memory, so that copies need not be
    waited for.

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
        self.split, self.batch, self.seed, self.workers = split, batch, seed, workers
        # The slice is fixed here, since a loading process may know nothing of ranks.
        self.rows = dist.rows(batch)
        self.pieces = _pieces(self.rows.stop - self.rows.start, workers)
        self.order = Order(split.shard_lengths, seed, shards_per_window, fraction)

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop): images (b, 3, S, S) uint8, tokens (b, L) int64, labels (b) int64; b = batch / ranks.

        Raises:
            ValueError: a shard is gone, or has changed since it was prepared.
        """
        pieces = _Pieces(self.split, self._samples, self.split.store_size)
        batches = _loaded(pieces, range(start, stop), self.pieces, self.workers)
        if self.split.remote:
            batches = self._fetching(batches, start)
        return _ahead(batches) if self.workers else batches

    def _samples(self, number: int) -> Tensor:
        """Samples of piece `number` of the stream: part number % pieces of step number // pieces."""
        step, piece = divmod(number, self.pieces)
        count = self.rows.stop - self.rows.start
        first = step * self.batch + self.rows.start
        return self.order.positions(*(first + count * part // self.pieces for part in (piece, piece + 1)))

    def _fetching(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """The same batches; meanwhile the tars of the next window are fetched. Who reads a tar that is not here reports why."""
        coming = list[int]()
        pool = ThreadPoolExecutor(FETCHERS)
        try:
            for step in itertools.count(start):
                if (now := self.order.coming(step * self.batch)) != coming:
                    for shard in now:
                        pool.submit(self.split.fetch, shard)
                    coming = now
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)  # a training that was asked to stop does not wait for what it will not read


def in_order(split: Split, samples: Tensor, *, batch: int, workers: int) -> Iterator[Batch]:
    """These samples (n) int64, each once and in this order, as the models see them (`image_size`); the last batch may be smaller.

    Args:
        workers: loading processes; 0 decodes in this one.
    """
    pieces = _pieces(batch, workers)

    def part(number: int) -> Tensor:
        rows = samples[number // pieces * batch :][:batch]
        return rows.tensor_split(pieces)[number % pieces]

    batches = _loaded(_Pieces(split, part, split.image_size), range(-(-len(samples) // batch)), pieces, workers)
    return _ahead(batches) if workers else batches


class _Pieces(Dataset):
    """Pieces of batches by number. Errors are handed over, as a process would wrap them in its traceback."""

    def __init__(self, split: Split, samples: Callable[[int], Tensor], side: int) -> None:
        self.split, self.samples, self.side = split, samples, side

    def __getitem__(self, number: int) -> Batch | ValueError:
        try:
            return self.split.rows(self.samples(number), self.side)
        except ValueError as error:
            return error


def _pieces(rows: int, workers: int) -> int:
    """Into how many pieces so many rows are divided."""
    return max(1, min(workers, rows // PIECE))


def _loaded(source: _Pieces, batches: range, pieces: int, workers: int) -> Iterator[Batch]:
    """Batches of these numbers, each of `pieces` pieces, decoded by `workers` processes that start now."""
    loader = DataLoader(
        source,
        batch_size=None,
        sampler=range(batches.start * pieces, batches.stop * pieces),
        num_workers=workers,
        worker_init_fn=_begin,
        prefetch_factor=PREFETCH if workers else None,
        generator=seeding.generator(0, "loader"),  # otherwise it would draw from the global one; nothing depends on it
    )
    if workers:
        _end_at_exit()
    stream = iter(loader)
    return (_join(list(itertools.islice(stream, pieces))) for _ in batches)


def _begin(worker: int) -> None:
    stopping.ignore()


@cache
def _end_at_exit() -> None:
    """End the loading processes that a failed training leaves: they ignore Python's SIGTERM, and it would wait for ever."""

    def end() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


def _join(pieces: list[Batch | ValueError]) -> Batch:
    """One batch of its pieces, pinned where there is a GPU at work."""
    parts: list[Batch] = []
    for piece in pieces:
        if isinstance(piece, ValueError):
            raise piece
        parts.append(piece)
    pinned = torch.cuda.is_initialized()
    if len(parts) == 1 and not pinned:
        return parts[0]
    joined = {}
    for name, first in parts[0].items():
        rows = sum(len(part[name]) for part in parts)
        joined[name] = torch.empty(rows, *first.shape[1:], dtype=first.dtype, pin_memory=pinned)
        # By numpy: torch would share so small a copy among all threads, and wait for the slowest core.
        np.concatenate([part[name].numpy() for part in parts if len(part[name])], out=joined[name].numpy())
    return joined


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, put together by a thread before they are asked for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        waiting = deque(thread.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)
