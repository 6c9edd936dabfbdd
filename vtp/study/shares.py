"""What each of several programs that run at once gets of a machine."""

from __future__ import annotations

import os

from vtp.data.executors import cores


def shares(at_once: int) -> list[dict[str, str]]:
    """Variables for the environment of each: one GPU in turn, and an equal part of the cores that torch would take.

    Only GPUs that CUDA_VISIBLE_DEVICES lists are dealt, if it is set; OMP_NUM_THREADS, if it is set, holds for each as it is. A
    program that runs alone gets everything, and no variables.
    """
    if at_once == 1:
        return [{}]
    import torch

    count = torch.cuda.device_count()  # asks the driver; what would take memory of a GPU begins with its first use
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // at_once))
    dealt = [{"CUDA_VISIBLE_DEVICES": gpus[number % count]} if count else {} for number in range(at_once)]
    return [{"OMP_NUM_THREADS": threads} | gpu for gpu in dealt]


def loaders(workers: int, at_once: int) -> int:
    """Loading processes of each: as many as it asks for, as far as there are cores for all; one at least, if it asks for any."""
    return workers if at_once == 1 else min(workers, max(1, cores() // at_once))
