"""Batches of a prepared split, addressed by step: any step at once, the same whatever the number of loading processes."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

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
        self.seed, self.workers = seed, workers
        # The slice is fixed here, since a loading process may know nothing of ranks.
        rows = dist.rows(batch)
        self.pieces = max(1, min(workers, (rows.stop - rows.start) // PIECE))
        order = Order(split.shard_lengths, seed, shards_per_window, fraction)
        self.source = _Pieces(split, order, batch, rows, self.pieces)

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop): images (b, 3, S, S) uint8, tokens (b, L) int64, labels (b) int64; b = batch / ranks.

        Raises:
            ValueError: a shard is gone, or has changed since it was prepared.
        """
        loader = DataLoader(
            self.source,
            batch_size=None,
            sampler=range(start * self.pieces, stop * self.pieces),
            num_workers=self.workers,
            worker_init_fn=_begin,
            prefetch_factor=PREFETCH if self.workers else None,
            generator=seeding.generator(self.seed, "loader"),  # otherwise it would draw from the global one
        )
        if self.workers:
            _end_at_exit()
        pieces = iter(loader)
        batches: Iterator[Batch] = (_join(list(itertools.islice(pieces, self.pieces))) for _ in range(start, stop))
        if self.source.split.remote:
            batches = self._fetching(batches, start)
        return _ahead(batches) if self.workers else batches

    def _fetching(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """The same batches; meanwhile the tars of the next window are fetched. Who reads a tar that is not here reports why."""
        source, coming = self.source, list[int]()
        with ThreadPoolExecutor(FETCHERS) as pool:
            for step in itertools.count(start):
                if (now := source.order.coming(step * source.batch)) != coming:
                    for shard in now:
                        pool.submit(source.split.fetch, shard)
                    coming = now
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch


class _Pieces(Dataset):
    """Piece i is part i % pieces of step i // pieces. Errors are handed over, as a process would wrap them in its traceback."""

    def __init__(self, split: Split, order: Order, batch: int, rows: slice, pieces: int) -> None:
        self.split, self.order, self.batch, self.rows, self.pieces = split, order, batch, rows, pieces

    def __getitem__(self, number: int) -> Batch | ValueError:
        step, piece = divmod(number, self.pieces)
        count = self.rows.stop - self.rows.start
        first = step * self.batch + self.rows.start
        start, stop = (first + count * part // self.pieces for part in (piece, piece + 1))
        try:
            return self.split.rows(self.order.positions(start, stop), self.split.store_size)
        except ValueError as error:
            return error


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
        torch.cat([part[name] for part in parts], out=joined[name])
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
