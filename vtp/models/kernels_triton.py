"""The Triton code of `kernels.py`: each kernel reads its inputs once and writes its outputs once.

Letters: H heads, D head width, both filled up to powers of two (BH, BD) where blocks need them. A tile is the heads of one token,
(BH, BD), and is held as two halves, the first and the second channel of every pair that turns together: (BH, BD / 2) each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, STAGES = 16, 3
"""Tokens of one program in the backward pass, whose gradients of the norm weights it sums; how many are on their way at once."""
COLUMNS = 1024
PROGRAMS = 1024
"""About as many programs as fill a GPU: the fewer, the less is written to be summed once more."""


@triton.jit
def _load(pointer, step, heads, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both halves in float32 of a tile of so many heads, `step` apart; a table of one row is one head."""
    head = tl.arange(0, BH)[:, None]
    if INTERLEAVED:
        channel = tl.arange(0, BD)[None, :]
        tile = tl.load(pointer + head * step + channel, mask=(head < heads) & (channel < D), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(tile, (BH, BD // 2, 2)))
    else:
        channel = tl.arange(0, BD // 2)[None, :]
        inside = (head < heads) & (channel < D // 2)
        first = tl.load(pointer + head * step + channel, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(pointer + head * step + D // 2 + channel, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _sines(pointer, D: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A row of sines, those of the first channels negative, as tables of halves hold them already."""
    first, second = _load(pointer, 0, 1, D, 1, BD, INTERLEAVED)
    if INTERLEAVED:
        first = -first
    return first, second


@triton.jit
def _store(
    pointer, first, second, heads, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr
):  # fmt: skip
    """The inverse of `_load`, heads D apart."""
    head = tl.arange(0, BH)[:, None]
    kind = pointer.dtype.element_ty
    if INTERLEAVED:
        channel = tl.arange(0, BD)[None, :]
        tile = tl.reshape(tl.join(first.to(kind), second.to(kind)), (BH, BD))
        tl.store(pointer + head * D + channel, tile, mask=(head < heads) & (channel < D))
    else:
        channel = tl.arange(0, BD // 2)[None, :]
        inside = (head < heads) & (channel < D // 2)
        tl.store(pointer + head * D + channel, first.to(kind), mask=inside)
        tl.store(pointer + head * D + D // 2 + channel, second.to(kind), mask=inside)


@triton.jit
def _scale(a, b, eps, D: tl.constexpr):
    """One over the root mean square of every head."""
    return tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]


@triton.jit
def _copy(source, out, heads, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    head, channel = tl.arange(0, BH)[:, None], tl.arange(0, BD)[None, :]
    inside = (head < heads) & (channel < D)
    tl.store(out + head * D + channel, tl.load(source + head * D + channel, mask=inside), mask=inside)


@triton.jit
def _turn(
    qkv, q_weight, k_weight, sin, cos, q, k, v, places, eps,
    H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    place = token % places
    source, out = qkv + token.to(tl.int64) * (3 * H * D), token.to(tl.int64) * (H * D)
    qa, qb = _load(source, D, H, D, BH, BD, INTERLEAVED)
    ka, kb = _load(source + H * D, D, H, D, BH, BD, INTERLEAVED)
    ca, cb = _load(cos + place * D, 0, 1, D, 1, BD, INTERLEAVED)
    sa, sb = _sines(sin + place * D, D, BD, INTERLEAVED)
    wa, wb = _load(q_weight, 0, 1, D, 1, BD, INTERLEAVED)
    scale = _scale(qa, qb, eps, D)
    qa, qb = qa * scale * wa, qb * scale * wb
    _store(q + out, qa * ca + qb * sa, qb * cb + qa * sb, H, D, BH, BD, INTERLEAVED)
    wa, wb = _load(k_weight, 0, 1, D, 1, BD, INTERLEAVED)
    scale = _scale(ka, kb, eps, D)
    ka, kb = ka * scale * wa, kb * scale * wb
    _store(k + out, ka * ca + kb * sa, kb * cb + ka * sb, H, D, BH, BD, INTERLEAVED)
    if VALUES:
        _copy(source + 2 * H * D, v + out, H, D, BH, BD)


def _blocks(heads: int, width: int) -> tuple[int, int]:
    return triton.next_power_of_2(heads), triton.next_power_of_2(width)


def warps(heads: int, width: int) -> int:
    """So many that a thread holds two accesses of eight neighbours; but two, since one alone waits for memory."""
    bh, bd = _blocks(heads, width)
    return max(2, min(16, bh * bd // 512))


def turn(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, sin: Tensor, cos: Tensor, eps: float, interleaved: bool, values: bool
) -> list[Tensor]:
    """Queries, keys and, if asked for, values."""
    batch, tokens, _, heads, width = qkv.shape
    qkv = qkv.contiguous()
    assert sin.shape == cos.shape == (tokens, width)
    out = [qkv.new_empty(batch, tokens, heads, width) for _ in range(3 if values else 2)]
    _turn[(batch * tokens,)](
        qkv, q_weight, k_weight, sin.contiguous(), cos.contiguous(), out[0], out[1], out[-1], tokens, eps,
        heads, width, *_blocks(heads, width), interleaved, values, num_warps=warps(heads, width),
    )  # fmt: skip
    return out


@triton.jit
def _turn_backward(
    dq, dk, dv, qkv, q_weight, k_weight, sin, cos, dqkv, sums, rows, places, eps,
    H: tl.constexpr, D: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, INTERLEAVED: tl.constexpr,
    STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Part 0, queries, also hands the gradient of the values on; part 1, keys."""
    program, part = tl.program_id(0), tl.program_id(1)
    if part == 0:
        grad, weight = dq, q_weight
    else:
        grad, weight = dk, k_weight
    wa, wb = _load(weight, 0, 1, D, 1, BD, INTERLEAVED)
    # Summed over heads only at the end: a sum across threads costs more than all the rest of a step.
    sum_a, sum_b = tl.zeros((BH, BD // 2), tl.float32), tl.zeros((BH, BD // 2), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        token = program * STEPS + step
        heads = tl.where(token < rows, H, 0)  # of tokens past the end none, so that loads need no branch and can run ahead
        place, wide = token % places, token.to(tl.int64) * (H * D)
        a, b = _load(qkv + 3 * wide + part * H * D, D, heads, D, BH, BD, INTERLEAVED)
        ga, gb = _load(grad + wide, D, heads, D, BH, BD, INTERLEAVED)
        ca, cb = _load(cos + place * D, 0, 1, D, 1, BD, INTERLEAVED)
        sa, sb = _sines(sin + place * D, D, BD, INTERLEAVED)
        scale = _scale(a, b, eps, D)
        a, b = a * scale, b * scale
        # The rotation transposed.
        ua, ub = ga * ca + gb * sb, gb * cb + ga * sa
        ta, tb = ua * wa, ub * wb
        shared = (tl.sum(ta * a, 1) + tl.sum(tb * b, 1))[:, None] / D
        sum_a += ua * a
        sum_b += ub * b
        out = dqkv + 3 * wide
        _store(out + part * H * D, scale * (ta - a * shared), scale * (tb - b * shared), heads, D, BH, BD, INTERLEAVED)
        if part == 0:
            _copy(dv + wide, out + 2 * H * D, heads, D, BH, BD)
    half = tl.arange(0, BD // 2)
    # Sums are kept in halves, whatever the order of the channels.
    here = sums + program * (2 * D) + part * D + half
    tl.store(here, tl.sum(sum_a, 0), mask=half < D // 2)
    tl.store(here + D // 2, tl.sum(sum_b, 0), mask=half < D // 2)


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
    qkv, dv, sin, cos = (tensor.contiguous() for tensor in (qkv, dv, sin, cos))
    dqkv, rows = torch.empty_like(qkv), batch * tokens
    programs = triton.cdiv(rows, TOKENS)
    sums = torch.empty(programs, 2, 2, width // 2, device=qkv.device, dtype=torch.float32)
    _turn_backward[(programs, 2)](
        dq.contiguous(), dk.contiguous(), dv, qkv, q_weight, k_weight, sin, cos, dqkv, sums, rows, tokens, eps,
        heads, width, *_blocks(heads, width), interleaved, TOKENS, STAGES, num_warps=warps(heads, width),
    )  # fmt: skip
    halves = sums.sum(0)
    return dqkv, (halves.transpose(1, 2) if interleaved else halves).flatten(1)


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
    parts = triton.cdiv(hidden, COLUMNS)
    steps = max(16, min(64, triton.next_power_of_2(rows * parts // PROGRAMS)))
    programs = triton.cdiv(rows, steps)
    sums = torch.empty(programs, 2 * hidden, device=both.device, dtype=torch.float32)
    _gate_plus_backward[(programs, parts)](grad, both, bias.contiguous(), out, sums, rows, hidden, COLUMNS, steps)
    return out, sums.sum(0)
