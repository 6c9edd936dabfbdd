"""What a training costs while it runs: pictures a second, share of the device's peak, waiting for data, memory, time by loss.

Nothing here makes the host wait for the device between two rows of the curves: pieces of a step are timed by events, which are
read when the scalars are read anyway.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from vtp import dist
from vtp.tasks.base import Batch

log = logging.getLogger(__name__)

PREFIX = "system/"
TIME = PREFIX + "milliseconds/"
SETTLING = 5
"""Steps of this process before a profile begins: they compile and fill caches."""


def unmarked(name: str) -> None:
    """For whoever runs a step and asks for no times."""


class Watch:
    """Times one training on one rank.

    Args:
        device: where it runs.
        images: pictures of a global step.
        profile: steps of a trace by torch's profiler; None: no trace.
        folder: where the trace goes.
    """

    def __init__(self, device: torch.device, images: int, *, profile: int | None, folder: Path) -> None:
        self.device, self.images = device, images
        self.peak = _matrix_rate(device) if device.type == "cuda" else None
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self._waited, self._steps, self._begun = 0.0, 0, time.perf_counter()
        self._profile, self._folder, self._done = profile, folder, 0
        self._profiler: torch.profiler.profile | None = None

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what the host waits for each is counted."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            self._begin()
            yield batch

    def mark(self, name: str) -> None:
        """What was done since the mark before belongs to `name`."""
        if self.device.type != "cuda":
            self._marks.append((name, time.perf_counter()))
        elif not torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))

    def step(self) -> None:
        """A step is done."""
        self._steps += 1
        self._done += 1
        if self._done == SETTLING + (self._profile or 0):
            self.close()

    def close(self) -> None:
        """Write the trace, if one was begun; what a training ended early did of it."""
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            self._write_trace(profiler)

    def row(self, operations: int) -> dict[str, float]:
        """Figures of the steps since the last row, under names of MLflow's system metrics; waits for the device.

        Args:
            operations: of one step of the global batch, over all ranks; 0 where they are not known.
        """
        if self._marks and isinstance(last := self._marks[-1][1], torch.cuda.Event):
            last.synchronize()
        took = time.perf_counter() - self._begun
        steps = max(self._steps, 1)
        row = {"images_per_second": self.images * self._steps / took, "data_wait_share": self._waited / took}
        if self.peak and operations:
            row["share_of_peak"] = operations * self._steps / took / dist.world() / self.peak
            row["peak_tflops"] = self.peak / 1e12
        if self.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        row |= {f"milliseconds/{name}": spent / steps for name, spent in self._spent().items()}
        self._marks.clear()
        self._waited, self._steps, self._begun = 0.0, 0, time.perf_counter()
        return {PREFIX + name: value for name, value in row.items()}

    def _begin(self) -> None:
        self.mark("")
        if self._profile is not None and self._done == SETTLING and dist.is_main():
            self._profiler = torch.profiler.profile(acc_events=True)
            self._profiler.start()

    def _spent(self) -> dict[str, float]:
        """Milliseconds by name; what lies between the end of a step and the next batch belongs to nobody."""
        spent: dict[str, float] = defaultdict(float)
        for (_, start), (name, stop) in zip(self._marks, self._marks[1:], strict=False):
            if name and isinstance(stop, torch.cuda.Event):
                assert isinstance(start, torch.cuda.Event)
                spent[name] += start.elapsed_time(stop)
            elif name:
                assert isinstance(start, float)
                assert isinstance(stop, float)
                spent[name] += 1000 * (stop - start)
        return dict(spent)

    def _write_trace(self, profiler: torch.profiler.profile) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"trace-{os.getpid()}.json.gz"
        profiler.export_chrome_trace(str(path))
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60)
        log.info("run.profile: %d steps are traced in %s, for perfetto.dev\n%s", self._done - SETTLING, path, table)


def told(row: dict[str, float]) -> str:
    """The figures that a progress bar has room for."""
    facts = [f"{name.removeprefix(TIME)} {spent:.0f} ms" for name, spent in row.items() if name.startswith(TIME)]
    if (share := row.get(PREFIX + "share_of_peak")) is not None:
        facts.append(f"{share:.0%} of peak")
    if (memory := row.get(PREFIX + "memory_gib")) is not None:
        facts.append(f"{memory:.0f} GiB")
    if (waiting := row[PREFIX + "data_wait_share"]) >= 0.01:
        facts.append(f"{waiting:.0%} waiting for data")
    return ", ".join(facts)


def _matrix_rate(device: torch.device) -> float:
    """Operations a second of a large bfloat16 matrix product on this device, measured in a few milliseconds: its peak in use."""
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(8192, 8192, generator=draw, device=device, dtype=torch.bfloat16) for _ in range(2))
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for run in range(12):
        if run == 2:
            start.record()
        a @ b
    stop.record()
    stop.synchronize()
    return 10 * 2 * 8192**3 / start.elapsed_time(stop) * 1e3
