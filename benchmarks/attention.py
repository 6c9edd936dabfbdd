"""Attention kernels of torch side by side at the shapes of the joint step: `python -m benchmarks.attention`."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import timed

log = logging.getLogger(__name__)

SHAPES = {
    "W1 contrast": (512, 12, 257, False),
    "W1 text": (512, 12, 77, True),
    "W1 local crops": (1024, 12, 37, False),
    "W2 contrast": (1024, 6, 65, False),
    "W2 local crops": (1024, 6, 17, False),
}
"""(B, heads, N, causal); heads are 64 wide."""

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda")
    for name, (batch, heads, tokens, causal) in SHAPES.items():
        draw = torch.Generator(device).manual_seed(0)
        # As the blocks hand them over: heads inside, tokens outside.
        qkv = torch.randn(batch, tokens, 3, heads, 64, generator=draw, device=device, dtype=torch.bfloat16)
        q, k, v = (part.requires_grad_() for part in qkv.permute(2, 0, 3, 1, 4).unbind())
        for backend in BACKENDS:
            with sdpa_kernel(backend):

                def forward(q=q, k=k, v=v, causal=causal):  # noqa: ANN001
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

                grad = torch.randn_like(forward())

                def both(forward=forward, grad=grad, q=q, k=k, v=v):  # noqa: ANN001
                    torch.autograd.grad(forward(), (q, k, v), grad)

                one = timed(forward, device, warmup=3, runs=20).milliseconds
                two = timed(both, device, warmup=3, runs=20).milliseconds
                log.info("%-16s %-22s forward %7.3f ms, with backward %7.3f ms", name, backend.name, one, two)


if __name__ == "__main__":
    main()
