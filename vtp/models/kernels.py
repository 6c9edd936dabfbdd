"""Operations of a transformer block as one pass over memory each, on a GPU; what compilers make of them reads it several times.

They stand in for the plain lines of `Attention` and `SwiGLU` in compiled code on a GPU, and compute the same in float32 inside.
Gradients are written out by hand. The Triton code is in `kernels_triton.py`, which is imported when it is first needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wanted(x: Tensor) -> bool:
    """Whether to take these operations for `x`: in compiled code on a GPU; anywhere else the plain form runs."""
    return torch.compiler.is_compiling() and x.is_cuda


@torch.library.custom_op("vtp::turned_heads", mutates_args=())
def turned_heads(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, sin: Tensor, cos: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, normalised and turned to their places, and values.

    Args:
        qkv: (B, N, 3, heads, d), contiguous.
        q_weight, k_weight: (d,) of the RMS norms, whose statistics have `eps` added.
        sin, cos: (N, d) of each token's angles.
        interleaved: pairs (2i, 2i + 1) turn together; else (i, i + d / 2), and the sines of the first half are negative already.

    Returns:
        Three tensors (B, N, heads, d) of the type of `qkv`.
    """
    from vtp.models import kernels_triton

    q, k, v = kernels_triton.turn(qkv, q_weight, k_weight, sin, cos, eps, interleaved, values=True)
    return q, k, v


@turned_heads.register_fake
def _(qkv: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:]) for _ in range(3))
    return q, k, v


@torch.library.custom_op("vtp::turned_pair", mutates_args=())
def _turned_pair(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, sin: Tensor, cos: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Queries and keys alone, where no gradient is wanted."""
    from vtp.models import kernels_triton

    q, k = kernels_triton.turn(qkv, q_weight, k_weight, sin, cos, eps, interleaved, values=False)
    return q, k


@_turned_pair.register_fake
def _(qkv: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    q, k = (qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:]) for _ in range(2))
    return q, k


def heads_of(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, sin: Tensor, cos: Tensor, eps: float, *, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `turned_heads` gives, as attention takes it: (B, heads, N, d). Without gradients the values stay where they are."""
    if torch.is_grad_enabled():
        q, k, v = turned_heads(qkv, q_weight, k_weight, sin, cos, eps, interleaved)
    else:
        q, k = _turned_pair(qkv, q_weight, k_weight, sin, cos, eps, interleaved)
        v = qkv[:, :, 2]
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


@torch.library.custom_op("vtp::turned_heads_backward", mutates_args=())
def _turned_heads_backward(
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
    """Gradients of qkv, and of the two weights (2, d) in float32."""
    from vtp.models import kernels_triton

    return kernels_triton.turn_backward(dq, dk, dv, qkv, q_weight, k_weight, sin, cos, eps, interleaved)


@_turned_heads_backward.register_fake
def _(dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), qkv.new_empty(2, qkv.shape[-1], dtype=torch.float32)


def _keep_heads(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.eps, ctx.interleaved = inputs
    ctx.save_for_backward(*tensors)


def _heads_gradient(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    qkv, q_weight, k_weight, sin, cos = ctx.saved_tensors
    dqkv, weights = _turned_heads_backward(dq, dk, dv, qkv, q_weight, k_weight, sin, cos, ctx.eps, ctx.interleaved)
    return dqkv, weights[0].to(q_weight.dtype), weights[1].to(k_weight.dtype), None, None, None, None


turned_heads.register_autograd(_heads_gradient, setup_context=_keep_heads)


@torch.library.custom_op("vtp::gated", mutates_args=())
def gated(both: Tensor) -> Tensor:
    """silu(gate) * value of gate and value side by side: (..., 2 H), contiguous -> (..., H)."""
    from vtp.models import kernels_triton

    return kernels_triton.gate(both)


@gated.register_fake
def _(both: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


@torch.library.custom_op("vtp::gated_backward", mutates_args=())
def _gated_backward(grad: Tensor, both: Tensor) -> Tensor:
    from vtp.models import kernels_triton

    return kernels_triton.gate_backward(grad, both)


@_gated_backward.register_fake
def _(grad: Tensor, both: Tensor) -> Tensor:
    return both.new_empty(both.shape)


def _keep_gate(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gate_gradient(ctx: Any, grad: Tensor) -> Tensor:
    return _gated_backward(grad, *ctx.saved_tensors)


gated.register_autograd(_gate_gradient, setup_context=_keep_gate)


@torch.library.custom_op("vtp::gated_plus", mutates_args=())
def gated_plus(both: Tensor, bias: Tensor) -> Tensor:
    """`gated` of both + bias: the bias (2 H,) is added here, so that its gradient is summed where that of `both` is written."""
    from vtp.models import kernels_triton

    return kernels_triton.gate_plus(both, bias)


@gated_plus.register_fake
def _(both: Tensor, bias: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


@torch.library.custom_op("vtp::gated_plus_backward", mutates_args=())
def _gated_plus_backward(grad: Tensor, both: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from vtp.models import kernels_triton

    return kernels_triton.gate_plus_backward(grad, both, bias)


@_gated_plus_backward.register_fake
def _(grad: Tensor, both: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return both.new_empty(both.shape), bias.new_empty(bias.shape, dtype=torch.float32)


def _gate_plus_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    both, bias = ctx.saved_tensors
    found, of_bias = _gated_plus_backward(grad, both, bias)
    return found, of_bias.to(bias.dtype)


gated_plus.register_autograd(_gate_plus_gradient, setup_context=_keep_gate)
