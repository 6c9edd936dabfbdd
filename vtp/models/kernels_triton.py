"""The Triton code of `kernels.py`: each kernel reads its inputs once and writes its outputs once.

Letters: H heads, D head width, both filled up to powers of two (BH, BD) where blocks need them. `mate` is the other channel of a
rotating pair, `sign` what its product with the sine is added with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 16
"""Tokens of one program in the backward pass, whose gradients of the norm weights it sums."""
COLUMNS = 1024
ROWS = 32
"""Rows of one program of the gated unit's backward pass, whose gradients of the bias it sums."""


@triton.jit
def _pairs(channel, D: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        first = channel % 2 == 0
        mate = tl.where(first, channel + 1, channel - 1)
    else:
        first = channel < D // 2
        mate = tl.where(first, channel + D // 2, channel - D // 2)
    return mate, tl.where(first, -1.0, 1.0)


@triton.jit
def _turn_one(source, weight, out, at, across, channel, mate, inside, known, sin, cos, eps, D: tl.constexpr):
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(source + across, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    wy = tl.load(weight + mate, mask=known, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    turned = scale * (x * w * cos + y * wy * sin)
    tl.store(out + at, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turn(
    qkv, q_weight, k_weight, sin, cos, q, k, v, places, eps,
    H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    place = token % places
    head, channel = tl.arange(0, BH)[:, None], tl.arange(0, BD)[None, :]
    known = channel < D
    inside = (head < H) & known
    mate, sign = _pairs(channel, D, INTERLEAVED)
    c = tl.load(cos + place * D + channel, mask=known, other=0.0).to(tl.float32)
    s = tl.load(sin + place * D + channel, mask=known, other=0.0).to(tl.float32) * sign
    at, across = head * D + channel, head * D + mate
    source, out = qkv + token.to(tl.int64) * (3 * H * D), token.to(tl.int64) * (H * D)
    _turn_one(source, q_weight, q + out, at, across, channel, mate, inside, known, s, c, eps, D)
    _turn_one(source + H * D, k_weight, k + out, at, across, channel, mate, inside, known, s, c, eps, D)
    tl.store(v + out + at, tl.load(source + 2 * H * D + at, mask=inside), mask=inside)


def turn(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, sin: Tensor, cos: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    qkv = qkv.contiguous()
    assert sin.shape == cos.shape == (tokens, width)
    q, k, v = (qkv.new_empty(batch, tokens, heads, width) for _ in range(3))
    blocks = triton.next_power_of_2(heads), triton.next_power_of_2(width)
    _turn[(batch * tokens,)](
        qkv, q_weight, k_weight, sin.contiguous(), cos.contiguous(), q, k, v, tokens, eps, heads, width, *blocks, interleaved
    )
    return q, k, v


@triton.jit
def _turn_one_backward(
    grad, step, source, weight, out, at, across, channel, mate, head, inside, known, sin, cos, eps, D: tl.constexpr
):  # fmt: skip
    g = tl.load(grad + head * step + channel, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(grad + head * step + mate, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    unturned = g * cos + h * sin
    normal = x * scale
    through = unturned * w
    shared = tl.sum(through * normal, 1)[:, None] / D
    tl.store(out + at, (scale * (through - normal * shared)).to(out.dtype.element_ty), mask=inside)
    return tl.sum(unturned * normal, 0)


@triton.jit
def _turn_backward(
    dq, dk, dv, qkv, q_weight, k_weight, sin, cos, dqkv, weights, rows, places, eps,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head, channel = tl.arange(0, BH)[:, None], tl.arange(0, BD)[None, :]
    known = channel < D
    mate, sign = _pairs(channel, D, INTERLEAVED)
    at, across = head * D + channel, head * D + mate
    q_sum, k_sum = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for step in range(STEPS):
        token = (program * STEPS + step).to(tl.int64)
        inside = (head < H) & known & (token < rows)
        row, place = token // places, token % places
        c = tl.load(cos + place * D + channel, mask=known, other=0.0).to(tl.float32)
        # The mate's sine with the mate's sign: the transpose of the rotation.
        s = tl.load(sin + place * D + mate, mask=known, other=0.0).to(tl.float32) * -sign
        source, out = qkv + token * (3 * H * D), dqkv + token * (3 * H * D)
        grad = dq + row * q_batch + place * q_token
        q_sum += _turn_one_backward(
            grad, q_head, source, q_weight, out, at, across, channel, mate, head, inside, known, s, c, eps, D
        )
        grad = dk + row * k_batch + place * k_token
        k_sum += _turn_one_backward(
            grad, k_head, source + H * D, k_weight, out + H * D, at, across, channel, mate, head, inside, known, s, c, eps, D
        )
        value = tl.load(dv + row * v_batch + place * v_token + head * v_head + channel, mask=inside)
        tl.store(out + 2 * H * D + at, value, mask=inside)
    one = tl.arange(0, BD)
    tl.store(weights + program * (2 * D) + one, q_sum, mask=one < D)
    tl.store(weights + program * (2 * D) + D + one, k_sum, mask=one < D)


def turn_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    sin: Tensor,
    cos: Tensor,
    eps: float,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    dq, dk, dv = (g if g.stride(-1) == 1 else g.contiguous() for g in (dq, dk, dv))
    qkv = qkv.contiguous()
    dqkv, rows = torch.empty_like(qkv), batch * tokens
    programs = triton.cdiv(rows, TOKENS)
    weights = torch.empty(programs, 2, width, device=qkv.device, dtype=torch.float32)
    strides = [stride for g in (dq, dk, dv) for stride in g.stride()[:3]]
    blocks = triton.next_power_of_2(heads), triton.next_power_of_2(width)
    _turn_backward[(programs,)](
        dq, dk, dv, qkv, q_weight, k_weight, sin.contiguous(), cos.contiguous(), dqkv, weights, rows, tokens, eps,
        *strides, heads, width, *blocks, interleaved, TOKENS,
    )  # fmt: skip
    return dqkv, weights.sum(0)


@triton.jit
def _gate(both, out, H: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    a = tl.load(both + row * (2 * H) + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(both + row * (2 * H) + H + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * H + column, (a * tl.sigmoid(a) * b).to(out.dtype.element_ty), mask=inside)


def gate(both: Tensor) -> Tensor:
    both = both.contiguous()
    hidden = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], hidden)
    _gate[(both.numel() // both.shape[-1], triton.cdiv(hidden, COLUMNS))](both, out, hidden, COLUMNS)
    return out


@triton.jit
def _gate_backward(grad, both, out, H: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    g = tl.load(grad + row * H + column, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(both + row * (2 * H) + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(both + row * (2 * H) + H + column, mask=inside, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(a)
    da, db = g * b * open_ * (1 + a * (1 - open_)), g * a * open_
    tl.store(out + row * (2 * H) + column, da.to(out.dtype.element_ty), mask=inside)
    tl.store(out + row * (2 * H) + H + column, db.to(out.dtype.element_ty), mask=inside)


def gate_backward(grad: Tensor, both: Tensor) -> Tensor:
    grad, both, hidden = grad.contiguous(), both.contiguous(), both.shape[-1] // 2
    out = torch.empty_like(both)
    _gate_backward[(both.numel() // both.shape[-1], triton.cdiv(hidden, COLUMNS))](grad, both, out, hidden, COLUMNS)
    return out


@triton.jit
def _gate_plus(both, bias, out, H: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    a = tl.load(both + row * (2 * H) + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(both + row * (2 * H) + H + column, mask=inside, other=0.0).to(tl.float32)
    a += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    b += tl.load(bias + H + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * H + column, (a * tl.sigmoid(a) * b).to(out.dtype.element_ty), mask=inside)


def gate_plus(both: Tensor, bias: Tensor) -> Tensor:
    both, hidden = both.contiguous(), both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], hidden)
    _gate_plus[(both.numel() // both.shape[-1], triton.cdiv(hidden, COLUMNS))](both, bias.contiguous(), out, hidden, COLUMNS)
    return out


@triton.jit
def _gate_plus_backward(grad, both, bias, out, sums, rows, H: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    program, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < H
    a_bias = tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + H + column, mask=known, other=0.0).to(tl.float32)
    a_sum, b_sum = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        row = program * STEPS + step
        inside = known & (row < rows)
        g = tl.load(grad + row * H + column, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(both + row * (2 * H) + column, mask=inside, other=0.0).to(tl.float32) + a_bias
        b = tl.load(both + row * (2 * H) + H + column, mask=inside, other=0.0).to(tl.float32) + b_bias
        open_ = tl.sigmoid(a)
        da, db = g * b * open_ * (1 + a * (1 - open_)), g * a * open_
        tl.store(out + row * (2 * H) + column, da.to(out.dtype.element_ty), mask=inside)
        tl.store(out + row * (2 * H) + H + column, db.to(out.dtype.element_ty), mask=inside)
        a_sum += da
        b_sum += db
    tl.store(sums + program * (2 * H) + column, a_sum, mask=known)
    tl.store(sums + program * (2 * H) + H + column, b_sum, mask=known)


def gate_plus_backward(grad: Tensor, both: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    grad, both, hidden = grad.contiguous(), both.contiguous(), both.shape[-1] // 2
    out, rows = torch.empty_like(both), both.numel() // both.shape[-1]
    programs = triton.cdiv(rows, ROWS)
    sums = torch.empty(programs, 2 * hidden, device=both.device, dtype=torch.float32)
    _gate_plus_backward[(programs, triton.cdiv(hidden, COLUMNS))](
        grad, both, bias.contiguous(), out, sums, rows, hidden, COLUMNS, ROWS
    )
    return out, sums.sum(0)
