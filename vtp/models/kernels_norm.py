"""Residual addition, norm and modulation of a diffusion transformer's block as one pass over memory each way, on a GPU.

What compilers make of these lines reads the sum of all blocks again for the norm and for what is handed on. Like the operations
of `kernels.py` it stands in for plain lines in compiled code; its Triton code is in `kernels_norm_triton.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("vtp::added_norm", mutates_args=())
def _added_norm(
    x: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from vtp.models import kernels_norm_triton

    return kernels_norm_triton.added_norm(x, gate, added, weight, scale, shift, eps)


@_added_norm.register_fake
def _(
    x: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:2], dtype=torch.float32)


def added_norm(
    x: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum x + gate * added, and rms_norm(sum) * weight * (1 + scale) + shift; both of the type of `x`.

    Args:
        x, added: (B, N, D).
        gate, scale, shift: (B, D) for each picture; no shift adds nothing.
        weight: (D,) of the RMS norm, whose statistics have `eps` added.
    """
    total, out, _ = _added_norm(x, gate, added, weight, scale, shift, eps)
    return total, out


@torch.library.custom_op("vtp::added_norm_backward", mutates_args=())
def _added_norm_backward(
    d_total: Tensor, d_out: Tensor, total: Tensor, scales: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from vtp.models import kernels_norm_triton

    return kernels_norm_triton.added_norm_backward(d_total, d_out, total, scales, gate, added, weight, scale)


@_added_norm_backward.register_fake
def _(
    d_total: Tensor, d_out: Tensor, total: Tensor, scales: Tensor, gate: Tensor, added: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = total.new_empty(len(total), 3, total.shape[2], dtype=torch.float32)
    return total.new_empty(total.shape), total.new_empty(total.shape), sums


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gate, added, weight, scale, shift, _ = inputs
    total, _, scales = output
    ctx.shifted = shift is not None
    ctx.save_for_backward(total, scales, gate, added, weight, scale)


def _gradient(ctx: Any, d_total: Tensor, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    total, scales, gate, added, weight, scale = ctx.saved_tensors
    dx, d_added, sums = _added_norm_backward(d_total, d_out, total, scales, gate, added, weight, scale)
    of_shift, normed, of_gate = sums.unbind(1)
    of_weight = (normed * (1 + scale.float())).sum(0).to(weight.dtype)
    of_scale = (normed * weight.float()).to(scale.dtype)
    return dx, of_gate.to(gate.dtype), d_added, of_weight, of_scale, of_shift.to(scale.dtype) if ctx.shifted else None, None


_added_norm.register_autograd(_gradient, setup_context=_keep)
