"""Measuring: time by device events, memory, arithmetic, the machine's own ceiling, and a record of it as JSON.

A figure means little without what the machine can do, so every benchmark measures the rate of a large matrix product in the same
process and tells its own rate as a share of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from vtp.artifacts import aside

log = logging.getLogger(__name__)

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timing:
    """Repeated runs of one piece of work.

    Attributes:
        milliseconds: median of the runs.
        fastest, slowest: their range, in milliseconds.
        runs: how many there were, warm-up not counted.
        peak_gib: most device memory that tensors took, warm-up included, GiB; 0 on a CPU.
    """

    milliseconds: float
    fastest: float
    slowest: float
    runs: int
    peak_gib: float


def timed(work: Callable[[], object], device: torch.device, *, warmup: int, runs: int, quiet: bool = False) -> Timing:
    """Time `work`, by events on a GPU and by the clock on a CPU, after `warmup` runs that are not counted.

    Args:
        quiet: after the warm-up nothing may be compiled any more, and nothing may make the host wait for the GPU.

    Raises:
        RuntimeError: something did, and `quiet` was asked for.
    """
    if device.type == "cuda":
        # From the warm-up on: a recorded step lives in memory that is no longer counted when it is replayed.
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(warmup):
        work()
    with _quiet(device) if quiet else nullcontext():
        return _timed(work, device, runs)


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    graphs = counters["stats"]["unique_graphs"]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    if late := counters["stats"]["unique_graphs"] - graphs:
        raise RuntimeError(f"{late} graphs were compiled after the warm-up.")


def _timed(work: Callable[[], object], device: torch.device, runs: int) -> Timing:
    if device.type != "cuda":
        took = []
        for _ in range(runs):
            start = time.perf_counter()
            work()
            took.append(1000 * (time.perf_counter() - start))
        return _timing(took, 0.0)
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    took = [start.elapsed_time(stop) for start, stop in itertools.pairwise(events)]
    return _timing(took, torch.cuda.max_memory_allocated(device) / 2**30)


def _timing(took: list[float], peak_gib: float) -> Timing:
    return Timing(statistics.median(took), min(took), max(took), len(took), peak_gib)


KINDS = {
    "matrix products": r"gemm|nvjet|cutlass(?!.*fmha)|cublas|splitK",
    "attention": r"flash|fmha|sdpa|attention",
    "convolutions": r"conv|wgrad|dgrad|winograd|implicit|fprop",
    "optimizer, averages, clipping": r"multi_tensor|foreach|Adam",
    "fused elementwise": r"triton",
    "copies": r"Memcpy|Memset|copy|CatArray",
}
"""Kinds of kernels by what their names hold; the first that fits counts, and what fits none is plain elementwise."""


def profile(work: Callable[[], object], device: torch.device, timing: Timing, *, steps: int = 3) -> dict[str, float]:
    """Where the time of `work` goes: share of its milliseconds by kind of kernel, and `idle`. The costliest are logged."""
    if device.type != "cuda":
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            work()
        torch.cuda.synchronize(device)
    took: dict[str, list[float]] = {}
    for event in profiler.key_averages():
        if event.self_device_time_total > 0:
            took[event.key] = [event.self_device_time_total / 1000 / steps, event.count / steps]
    shares = dict.fromkeys([*KINDS, "plain elementwise"], 0.0)
    for name, (milliseconds, _) in took.items():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.I)), "plain elementwise")
        shares[kind] += milliseconds / timing.milliseconds
    shares["idle"] = 1 - sum(shares.values())
    ordered = sorted(took.items(), key=lambda item: -item[1][0])
    plain = [(name, value) for name, value in ordered if not any(re.search(p, name, re.I) for p in KINDS.values())]
    for title, rows in (("all", ordered[:32]), ("plain elementwise", plain[:14])):
        log.info("costliest kernels, %s", title)
        for name, (milliseconds, count) in rows:
            log.info("%8.2f ms %6.0f x  %s", milliseconds, count, _kernel(name))
    log.info("%s", {kind: round(share, 3) for kind, share in shares.items()})
    return shares


def _kernel(name: str) -> str:
    """A kernel's name without the namespaces and types that say nothing."""
    return re.sub(r"void |at::native::|\(anonymous namespace\)::|std::|unsigned |::operator\(\).*|>\(.*", "", name)[:120]


def ceiling(device: torch.device) -> float:
    """TFLOP/s of a square matrix product of random numbers: 8192 wide in bfloat16 on a GPU, 1024 wide in float32 on a CPU."""
    width, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(width, width, generator=draw, device=device, dtype=dtype) for _ in range(2))
    timing = timed(lambda: a @ b, device, warmup=5, runs=20)
    return 2 * width**3 / timing.milliseconds / 1e9


def flop(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions in `work`, which must not be compiled."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def relative_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """|found - expected| / |expected| over several tensors taken as one vector, in float64. NaN if any number is."""
    pairs = [(f.double(), e.double()) for f, e in zip(found, expected, strict=True)]
    off = sum(float((f - e).square().sum()) for f, e in pairs)
    size = sum(float(e.square().sum()) for _, e in pairs)
    return (off / size) ** 0.5


def machine(device: torch.device) -> str:
    """Short name of the machine, as results are filed: `h200`, `h100`, `cpu`."""
    if device.type != "cuda":
        return "cpu"
    return torch.cuda.get_device_name(device).lower().replace("nvidia", "").split()[0]


def versions(device: torch.device) -> dict[str, str]:
    """What a figure depends on beside the code."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()
        return found | {"cuda": str(torch.version.cuda), "cudnn": str(cudnn), "device": torch.cuda.get_device_name(device)}
    return found | {"device": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"}


def record(
    name: str,
    timing: Timing,
    device: torch.device,
    *,
    module: str,
    ceiling_tflops: float,
    flop: float,
    extra: dict[str, object],
    folder: Path | None = None,
) -> Path:
    """Write the figures of one benchmark to `<folder>/<machine>/<name>.json` and return the path.

    Args:
        module: of the command, as in `python -m module`; its arguments are the process's own.
        ceiling_tflops: of `ceiling`, measured in this process.
        flop: operations of one run.
        extra: more figures, under their own names.
        folder: None: beside this file, where results of record are tracked.
    """
    rate = flop / timing.milliseconds / 1e9
    values = asdict(timing) | {
        "tflop": flop / 1e12,
        "tflops": rate,
        "ceiling_tflops": ceiling_tflops,
        "share_of_ceiling": rate / ceiling_tflops,
        **extra,
        "versions": versions(device),
        "date": date.today().isoformat(),
        "command": f"python -m {module} {_said()}".strip(),
    }
    path = (folder or RESULTS) / machine(device) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as temporary:
        temporary.write_text(json.dumps(_rounded(values), indent=1) + "\n")
    log.info("%s", json.dumps(_rounded(values)))
    return path


def _said() -> str:
    """This process's arguments but the folder of the results, which is nobody else's business."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return shlex.join(words)


def _rounded(value: object) -> object:
    """Numbers to four digits: more is noise."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
