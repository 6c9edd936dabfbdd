"""The Triton code of `kernels.added_norm`: a row of channels is read, added to, normalised and written by one program.

Letters: D channels, filled up to a power of two (BD).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, WARPS, STAGES = 8, 4, 3
"""Of a forward pass: tokens of one program, its warps, and how many tokens are on their way to it at once."""
TOKENS_BACK, WARPS_BACK, STAGES_BACK = 32, 8, 3
"""Of a backward pass, whose programs sum the gradients of scale, shift and gate over their tokens."""


@triton.jit
def _row(pointer, channel, inside):
    return tl.load(pointer + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _added_norm(
    x, gate, added, weight, scale, shift, total, out, scales, tokens, gate_step, scale_step, shift_step, eps,
    D: tl.constexpr, BD: tl.constexpr, SHIFT: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    picture, part, channel = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BD)
    known = channel < D
    kind = out.dtype.element_ty
    open_ = _row(gate + picture * gate_step, channel, known)
    slope = _row(weight, channel, known) * (1 + _row(scale + picture * scale_step, channel, known))
    if SHIFT:
        offset = _row(shift + picture * shift_step, channel, known)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        token = part * STEPS + step
        row, inside = picture * tokens + token, known & (token < tokens)
        sum_ = _row(x + row * D, channel, inside) + open_ * _row(added + row * D, channel, inside)
        # What is normalised is what is handed on, rounded as it is stored.
        sum_ = sum_.to(kind)
        tl.store(total + row * D + channel, sum_, mask=inside)
        sum_ = sum_.to(tl.float32)
        factor = tl.rsqrt(tl.sum(sum_ * sum_) / D + eps)
        tl.store(scales + row, factor, mask=token < tokens)
        y = sum_ * factor * slope
        if SHIFT:
            y += offset
        tl.store(out + row * D + channel, y.to(kind), mask=inside)


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
    _added_norm[(batch, triton.cdiv(tokens, TOKENS))](
        x, gate, added, weight, scale, given, total, out, scales, tokens, gate.stride(0), scale.stride(0), given.stride(0),
        eps, width, triton.next_power_of_2(width), shift is not None, TOKENS, STAGES, num_warps=WARPS,
    )  # fmt: skip
    return total, out, scales


@triton.jit
def _added_norm_backward(
    d_total, d_out, total, scales, gate, added, weight, scale, dx, d_added, sums, tokens, gate_step, scale_step,
    D: tl.constexpr, BD: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    picture, part, channel = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BD)
    known = channel < D
    kind = dx.dtype.element_ty
    open_ = _row(gate + picture * gate_step, channel, known)
    slope = _row(weight, channel, known) * (1 + _row(scale + picture * scale_step, channel, known))
    of_shift, of_scale = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    of_gate = tl.zeros((BD,), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        token = part * STEPS + step
        row, inside = picture * tokens + token, known & (token < tokens)
        dy = _row(d_out + row * D, channel, inside)
        small = tl.load(scales + row, mask=token < tokens, other=0.0)
        normed = _row(total + row * D, channel, inside) * small
        u = dy * slope
        found = small * (u - normed * (tl.sum(u * normed) / D)) + _row(d_total + row * D, channel, inside)
        tl.store(dx + row * D + channel, found.to(kind), mask=inside)
        tl.store(d_added + row * D + channel, (found * open_).to(kind), mask=inside)
        of_shift += dy
        of_scale += dy * normed
        of_gate += found * _row(added + row * D, channel, inside)
    here = sums + (picture * tl.num_programs(1) + part) * (3 * D) + channel
    tl.store(here, of_shift, mask=known)
    tl.store(here + D, of_scale, mask=known)
    tl.store(here + 2 * D, of_gate, mask=known)


def added_norm_backward(
    d_total: Tensor, d_out: Tensor, total: Tensor, scales: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and added; and for each picture the sums of dy, dy * normed and dx * added: (B, 3, D) float32."""
    batch, tokens, width = total.shape
    d_total, d_out, added = d_total.contiguous(), d_out.contiguous(), added.contiguous()
    dx, d_added = torch.empty_like(total), torch.empty_like(total)
    parts = triton.cdiv(tokens, TOKENS_BACK)
    sums = torch.empty(batch, parts, 3, width, device=total.device, dtype=torch.float32)
    _added_norm_backward[(batch, parts)](
        d_total, d_out, total, scales, gate, added, weight, scale, dx, d_added, sums, tokens, gate.stride(0), scale.stride(0),
        width, triton.next_power_of_2(width), TOKENS_BACK, STAGES_BACK, num_warps=WARPS_BACK,
    )  # fmt: skip
    return dx, d_added, sums.sum(1)
