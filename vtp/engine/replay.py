"""A step recorded once as a CUDA graph and replayed: for models so small that launching kernels costs as much as running them.

What differs from step to step lies in tensors that stay where they are: the batch, the draws (`HeldDraws`), learning rates. The
first steps run as written, so that everything that is made once (compiled kernels, optimizer state, tables) is there before the
recording; they are steps like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from vtp.seeding import HeldDraws
from vtp.tasks.base import Batch

log = logging.getLogger(__name__)

FIRST = 3
"""Steps of a kind that run as written before one is recorded."""

Work = Callable[[Batch, HeldDraws], dict[str, Tensor]]
"""Everything a step does on the device, from a batch and draws to scalars; the same kernels in every step."""


class Replay:
    """`work` as written for the first steps of a kind, then as one recorded graph, until there are steps of another kind.

    Memory of a recording stays taken until the next one is made or the object is gone.
    """

    def __init__(self, work: Work, seed: int, device: torch.device) -> None:
        self.work, self.draws = work, HeldDraws(seed, device)
        self.stream = torch.cuda.Stream(device)
        self.batch: Batch = {}
        self.graph: torch.cuda.CUDAGraph | None = None
        self.scalars: dict[str, Tensor] = {}
        self.kind, self.done = -1, 0

    def __call__(self, batch: Batch, step: int, kind: int) -> dict[str, Tensor]:
        """One step of a kind (see `Task.kind`). The scalars are the caller's to keep.

        Raises:
            ValueError: a batch of another shape than the first one's.
        """
        if kind != self.kind:
            self.stream.synchronize()  # a graph at work must not be taken away
            self.kind, self.done, self.graph = kind, 0, None
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.draws.at(step)
            self._hold(batch)
            if self.done < FIRST:
                scalars = self.work(self.batch, self.draws)
            else:
                if self.graph is None:
                    self._record()
                assert self.graph is not None
                self.graph.replay()
                scalars = {name: value.clone() for name, value in self.scalars.items()}
        current.wait_stream(self.stream)
        self.done += 1
        return scalars

    def _hold(self, batch: Batch) -> None:
        if not self.batch:
            self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        for name, tensor in batch.items():
            if tensor.shape != self.batch[name].shape:
                raise ValueError(
                    f"run.replay=true: {name} of shape {tuple(tensor.shape)} after {tuple(self.batch[name].shape)}; "
                    f"a recorded step needs batches of one shape."
                )
            self.batch[name].copy_(tensor, non_blocking=True)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # Threads that feed the loader may go on allocating while this one records.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.scalars = self.work(self.batch, self.draws)
        self.graph = graph
        log.info("recorded a step; from here on it is replayed")
