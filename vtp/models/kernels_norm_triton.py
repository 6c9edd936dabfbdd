"""The Triton code of `kernels.added_norm`: a row of channels is read, added to, normalised and written by one program.

Letters: D channels, filled up to a power of two (BD).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 32
"""Tokens of one program in the backward pass, whose gradients of scale, shift and gate it sums."""


@triton.jit
def _row(pointer, channel, D: tl.constexpr):
    return tl.load(pointer + channel, mask=channel < D, other=0.0).to(tl.float32)


@triton.jit
def _added_norm(
    x, gate, added, weight, scale, shift, total, out, scales, tokens, gate_step, scale_step, shift_step, eps,
    D: tl.constexpr, BD: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, BD)
    picture = row // tokens
    kind = out.dtype.element_ty
    sum_ = _row(x + row * D, channel, D) + _row(gate + picture * gate_step, channel, D) * _row(added + row * D, channel, D)
    # What is normalised is what is handed on, rounded as it is stored.
    sum_ = sum_.to(kind)
    tl.store(total + row * D + channel, sum_, mask=channel < D)
    sum_ = sum_.to(tl.float32)
    factor = tl.rsqrt(tl.sum(sum_ * sum_) / D + eps)
    tl.store(scales + row, factor)
    y = sum_ * factor * _row(weight, channel, D) * (1 + _row(scale + picture * scale_step, channel, D))
    if SHIFT:
        y += _row(shift + picture * shift_step, channel, D)
    tl.store(out + row * D + channel, y.to(kind), mask=channel < D)


def added_norm(
    x: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, norm, and one over the root mean square of every row."""
    batch, tokens, width = x.shape
    x, added = x.contiguous(), added.contiguous()
    assert gate.stride(1) == scale.stride(1) == 1
    total, out = torch.empty_like(x), torch.empty_like(x)
    scales = torch.empty(batch, tokens, device=x.device, dtype=torch.float32)
    given = scale if shift is None else shift
    _added_norm[(batch * tokens,)](
        x, gate, added, weight, scale, given, total, out, scales, tokens, gate.stride(0), scale.stride(0), given.stride(0),
        eps, width, triton.next_power_of_2(width), shift is not None, num_warps=4,
    )  # fmt: skip
    return total, out, scales


@triton.jit
def _added_norm_backward(
    d_total, d_out, total, scales, gate, added, weight, scale, dx, d_added, sums, tokens, gate_step, scale_step,
    D: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    picture, part, channel = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BD)
    open_ = _row(gate + picture * gate_step, channel, D)
    factor = _row(weight, channel, D) * (1 + _row(scale + picture * scale_step, channel, D))
    of_shift, of_scale = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    of_gate = tl.zeros((BD,), tl.float32)
    for step in range(STEPS):
        token = part * STEPS + step
        if token < tokens:
            row = picture * tokens + token
            dy = _row(d_out + row * D, channel, D)
            small = tl.load(scales + row)
            normed = _row(total + row * D, channel, D) * small
            u = dy * factor
            found = small * (u - normed * (tl.sum(u * normed) / D)) + _row(d_total + row * D, channel, D)
            tl.store(dx + row * D + channel, found.to(dx.dtype.element_ty), mask=channel < D)
            tl.store(d_added + row * D + channel, (found * open_).to(dx.dtype.element_ty), mask=channel < D)
            of_shift += dy
            of_scale += dy * normed
            of_gate += found * _row(added + row * D, channel, D)
    here = sums + (picture * tl.num_programs(1) + part) * (3 * D) + channel
    tl.store(here, of_shift, mask=channel < D)
    tl.store(here + D, of_scale, mask=channel < D)
    tl.store(here + 2 * D, of_gate, mask=channel < D)


def added_norm_backward(
    d_total: Tensor, d_out: Tensor, total: Tensor, scales: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and added; and for each picture the sums of dy, dy * normed and dx * added: (B, 3, D) float32."""
    batch, tokens, width = total.shape
    d_total, d_out, added = d_total.contiguous(), d_out.contiguous(), added.contiguous()
    dx, d_added = torch.empty_like(total), torch.empty_like(total)
    parts = triton.cdiv(tokens, TOKENS)
    sums = torch.empty(batch, parts, 3, width, device=total.device, dtype=torch.float32)
    _added_norm_backward[(batch, parts)](
        d_total, d_out, total, scales, gate, added, weight, scale, dx, d_added, sums, tokens, gate.stride(0), scale.stride(0),
        width, triton.next_power_of_2(width), TOKENS, num_warps=8,
    )  # fmt: skip
    return dx, d_added, sums.sum(1)
