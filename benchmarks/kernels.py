"""How near to the memory's own speed the hand-written kernels come, and under which settings: `python -m benchmarks.kernels`.

A kernel reads its inputs once and writes its outputs once, so that the rate of a large copy is its ceiling. For each shape that a
piece of work meets the kernel runs as it is, then with one setting changed at a time. Prints a table; writes nothing.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from vtp.models import kernels_norm_triton as norms
from vtp.models import kernels_triton as blocks
from vtp.seeding import generator

log = logging.getLogger(__name__)

Work = tuple[Callable[[], object], int]
"""A kernel with its inputs, and the bytes it has to move."""

AS_IT_IS = blocks.warps


def twice(heads: int, width: int) -> int:
    return min(16, 2 * AS_IT_IS(heads, width))


def half(heads: int, width: int) -> int:
    return max(1, AS_IT_IS(heads, width) // 2)


SETTINGS: dict[str, tuple[ModuleType, tuple[dict[str, Any], ...]]] = {
    "turn": (blocks, ({}, {"warps": twice}, {"warps": half})),
    "turn_backward": (
        blocks,
        ({}, {"STAGES": 1}, {"STAGES": 3}, {"TOKENS": 8}, {"TOKENS": 32}, {"warps": twice}, {"warps": half}),
    ),
    "gate_plus_backward": (blocks, ({}, {"PROGRAMS": 512}, {"PROGRAMS": 2048}, {"PROGRAMS": 4096}, {"COLUMNS": 512})),
    "added_norm": (
        norms,
        ({}, {"STAGES": 1}, {"STAGES": 3}, {"TOKENS": 4}, {"TOKENS": 16}, {"WARPS": 2}, {"WARPS": 8}),
    ),
    "added_norm_backward": (
        norms,
        ({}, {"STAGES_BACK": 1}, {"STAGES_BACK": 3}, {"TOKENS_BACK": 16}, {"TOKENS_BACK": 64}, {"WARPS_BACK": 4}),
    ),
}

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "turn": {"W3-xl": (256, 256, 16, 72), "W3-b": (512, 256, 12, 64), "W1": (512, 257, 12, 64), "W2": (1024, 65, 6, 64)},
    "gate_plus_backward": {"W3-xl": (65536, 3072), "W3-b": (131072, 2048), "W1": (131584, 2048), "W2": (66560, 1024)},
    "added_norm": {"W3-xl": (256, 256, 1152), "W3-b": (512, 256, 768)},
}
SHAPES |= {"turn_backward": SHAPES["turn"], "added_norm_backward": SHAPES["added_norm"]}
TINY = {"turn": (2, 5, 3, 8), "turn_backward": (2, 5, 3, 8), "gate_plus_backward": (9, 16)}
TINY |= {"added_norm": (2, 9, 24), "added_norm_backward": (2, 9, 24)}


def work(kernel: str, shape: tuple[int, ...], device: torch.device) -> Work:
    """The kernel on random inputs: bfloat16, norm weights and angles in float32."""
    draw = generator(0, "kernels", device=device)

    def random(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*size, generator=draw, device=device).to(dtype)

    if kernel.startswith("turn"):
        batch, tokens, heads, width = shape
        qkv, q_weight, k_weight = random(batch, tokens, 3, heads, width), random(width), random(width)
        sin, cos = random(2, tokens, width, dtype=torch.float32)
        interleaved = width == SHAPES["turn"]["W3-xl"][3]
        third = 2 * qkv.numel() // 3
        if kernel == "turn":
            return lambda: blocks.turn(qkv, q_weight, k_weight, sin, cos, 1e-6, interleaved, True), 6 * third
        dq, dk, dv = (random(batch, tokens, heads, width) for _ in range(3))
        return lambda: blocks.turn_backward(dq, dk, dv, qkv, q_weight, k_weight, sin, cos, 1e-6, interleaved), 8 * third
    if kernel == "gate_plus_backward":
        rows, hidden = shape
        grad, both, bias = random(rows, hidden), random(rows, 2 * hidden), random(2 * hidden)
        return lambda: blocks.gate_plus_backward(grad, both, bias), 10 * rows * hidden
    batch, _, width = shape
    x, added, d_total, d_out = (random(*shape) for _ in range(4))
    gate, scale, shift = random(batch, 6 * width).chunk(6, 1)[:3]
    weight = random(width)
    if kernel == "added_norm":
        return lambda: norms.added_norm(x, gate, added, weight, scale, shift, 1e-6), 8 * x.numel()
    total, _, scales = norms.added_norm(x, gate, added, weight, scale, shift, 1e-6)
    return lambda: norms.added_norm_backward(d_total, d_out, total, scales, gate, added, weight, scale), 12 * x.numel()


@contextmanager
def changed(module: ModuleType, settings: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in settings}
    for name, value in settings.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def rate(work: Work, device: torch.device) -> tuple[float, float]:
    """Median milliseconds of one run, and GB/s."""
    run, moved = work
    took = measure.timed(run, device, warmup=3, runs=20 if device.type == "cuda" else 1).milliseconds
    return took, moved / took / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(SETTINGS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU under TRITON_INTERPRET=1")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := sorted(set(args.kernels) - set(SETTINGS)):
        parser.error(f"there is no kernel {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    device = torch.device("cpu" if args.tiny else "cuda")
    large = torch.zeros(2**20 if args.tiny else 2**30, dtype=torch.bfloat16, device=device)
    _, ceiling = rate((large.clone, 4 * large.numel()), device)
    del large
    log.info("a copy moves %.0f GB/s", ceiling)
    for kernel in args.kernels or SETTINGS:
        module, tried = SETTINGS[kernel]
        for name, shape in {"tiny": TINY[kernel]}.items() if args.tiny else SHAPES[kernel].items():
            of_this = work(kernel, shape, device)
            for settings in tried:
                with changed(module, settings):
                    took, speed = rate(of_this, device)
                told = ", ".join(f"{key} {getattr(value, '__name__', value)}" for key, value in settings.items()) or "as it is"
                log.info("%-20s %-6s %-16s %8.3f ms %6.0f GB/s %4.0f %%", kernel, name, told, took, speed, 100 * speed / ceiling)


if __name__ == "__main__":
    main()
