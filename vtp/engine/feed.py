"""Batches from the host to the device, on the way while the device works on the step before."""

from __future__ import annotations

import torch
from torch import Tensor

from vtp.tasks.base import Batch


class Feed:
    """Moves batches to `device`.

    From ordinary memory a copy waits until the device has done everything asked of it before, and the host with it. From pinned
    memory and on a stream of its own it waits for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, ready for whatever is asked of the current stream from now on."""
        if self.stream is None:
            return {name: tensor.to(self.device) for name, tensor in batch.items()}
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = {name: self._moved(tensor) for name, tensor in batch.items()}
        current.wait_stream(self.stream)
        for tensor in moved.values():
            tensor.record_stream(current)  # or its memory could be given away while the step still reads it
        return moved

    def _moved(self, tensor: Tensor) -> Tensor:
        pinned = tensor if tensor.is_pinned() or tensor.is_cuda else tensor.pin_memory()
        return pinned.to(self.device, non_blocking=True)
