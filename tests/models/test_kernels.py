"""The kernels against the plain lines they stand in for, in Triton's interpreter; on a GPU the benchmarks check them compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tests.waiting import PATIENCE
from vtp.config import ROOT
from vtp.models import blocks, dit_blocks, kernels_norm
from vtp.seeding import generator

pytest.importorskip("triton")

CASES = [(True, 3, 24, 3), (True, 4, 16, 2), (False, 4, 16, 3), (False, 1, 8, 2)]
"""Interleaved pairs, heads, head width, side of the grid."""


def heads_errors(interleaved: bool, heads: int, width: int, side: int) -> list[float]:
    """Of outputs, then of gradients: the largest differences to the plain form, in float32."""
    from vtp.models import kernels

    if interleaved:
        rope = dit_blocks.Rope(width, side)
        sin, cos, eps, turn = rope.freqs_sin, rope.freqs_cos, dit_blocks.EPS, rope
    else:
        sin, cos = table = blocks.Rope(width, "float32")(side, side, 1)
        eps, turn = blocks.RMS_EPS, lambda x: blocks.rotate(x, table)
    draw = generator(0, "kernels")
    qkv = torch.randn(2, len(sin), 3, heads, width, generator=draw, requires_grad=True)
    weights = [(1 + 0.1 * torch.randn(width, generator=draw)).requires_grad_() for _ in range(2)]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = (turn(F.rms_norm(x, (width,), w, eps)) for x, w in zip((q, k), weights, strict=True))
    plain = [x.transpose(1, 2) for x in (q, k, v)]
    given = [torch.randn(2, heads, len(sin), width, generator=draw).transpose(1, 2) for _ in range(3)]  # as attention hands them
    fused = kernels.turned_heads(qkv, *weights, sin, cos, eps, interleaved)
    pairs = [*zip(fused, plain, strict=True)]
    pairs += zip(*(torch.autograd.grad(out, [qkv, *weights], given) for out in (fused, plain)), strict=True)
    return [float((one - other).detach().abs().max()) for one, other in pairs]


def gate_errors(hidden: int) -> list[float]:
    from vtp.models import kernels

    draw = generator(0, "gate")
    both = torch.randn(3, 5, 2 * hidden, generator=draw, requires_grad=True)
    grad = torch.randn(3, 5, hidden, generator=draw)
    fused, plain = kernels.gated(both), blocks.gated(both)
    one, other = (torch.autograd.grad(out, both, grad)[0] for out in (fused, plain))
    return [float((fused - plain).detach().abs().max()), float((one - other).abs().max())]


def biased_gate_errors(hidden: int, rows: int) -> list[float]:
    from vtp.models import kernels

    draw = generator(0, "biased gate")
    both = torch.randn(rows, 2, 2 * hidden, generator=draw, requires_grad=True)
    bias = torch.randn(2 * hidden, generator=draw, requires_grad=True)
    grad = torch.randn(rows, 2, hidden, generator=draw) / rows
    fused, plain = kernels.gated_plus(both, bias), blocks.gated(both + bias)
    pairs = zip(*(torch.autograd.grad(out, (both, bias), grad) for out in (fused, plain)), strict=True)
    return [float((one - other).detach().abs().max()) for one, other in [(fused, plain), *pairs]]


def norm_errors(width: int, tokens: int, shifted: bool) -> list[float]:
    """As a block asks for it: the vectors are slices of one row, in which other vectors lie between them."""
    draw = generator(0, "norm")
    x, added, d_total, d_out = torch.randn(4, 3, tokens, width, generator=draw).unbind(0)
    vectors = torch.randn(3, 4 * width, generator=draw)
    norm = dit_blocks.RMSNorm(width)
    torch.nn.init.normal_(norm.weight, 1.0, 0.1, generator=draw)
    leaves = [part.requires_grad_() for part in (x, added, vectors)]
    parts = vectors.chunk(4, 1)
    gate, scale, shift = parts[0], parts[1], parts[3] if shifted else None
    plain = dit_blocks.added_norm(x, gate, added, norm, scale, shift)
    fused = kernels_norm.added_norm(x, gate, added, norm.weight, scale, shift, dit_blocks.EPS)
    grads = (torch.autograd.grad(out, [*leaves, norm.weight], (d_total, d_out)) for out in (fused, plain))
    pairs = [*zip(fused, plain, strict=True), *zip(*grads, strict=True)]
    return [float((one - other).detach().abs().max()) for one, other in pairs]


def test_kernels_are_the_plain_lines() -> None:
    script = (
        "import json; from tests.models.test_kernels import *\n"
        "gates = [gate_errors(7), gate_errors(1300), biased_gate_errors(7, 40), biased_gate_errors(1300, 3)]\n"
        "norms = [norm_errors(24, 5, True), norm_errors(96, 40, False)]\n"
        "print(json.dumps([heads_errors(*case) for case in CASES] + gates + norms))"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when a kernel is defined, hence the process of its own
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == len(CASES) + 6
    assert all(error < 2e-5 for row in errors for error in row), errors


def test_a_packed_feed_forward_is_the_same_function() -> None:
    layer = blocks.SwiGLU(32, 88)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator(0, "swiglu"))
    x = torch.randn(3, 32, generator=generator(1, "swiglu"))
    packed = layer.packed()
    assert packed.w3.in_features == blocks.ALIGNED
    torch.testing.assert_close(packed(x), layer(x), atol=1e-4, rtol=1e-4)


def test_a_written_out_norm_is_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = blocks.LayerNorm(32, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=generator(0, "norm"))
    x = 3 + torch.randn(4, 32, generator=generator(1, "norm"))
    plain = norm(x)
    monkeypatch.setattr("vtp.models.kernels.wanted", lambda x: True)
    torch.testing.assert_close(norm(x), plain)


HOPPER = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vtp.models import kernels_norm_triton as norms, kernels_triton as blocks

KINDS = dict.fromkeys(("sin", "cos", "sums", "scales"), "*fp32") | {"eps": "fp32"}
KINDS |= dict.fromkeys(("places", "rows", "tokens", "gate_step", "scale_step", "shift_step"), "i32")
HEADS = {"H": 16, "D": 72, "BH": 16, "BD": 128, "INTERLEAVED": True, "VALUES": True}
HEADS |= {"STEPS": blocks.TOKENS, "STAGES": blocks.STAGES}
GATE = {"H": 3072, "BLOCK": blocks.COLUMNS, "STEPS": 64}
NORM = {"D": 1152, "BD": 2048, "SHIFT": True, "STEPS": norms.TOKENS, "STAGES": norms.STAGES}
BACK = NORM | {"STEPS": norms.TOKENS_BACK, "STAGES": norms.STAGES_BACK}
CASES = [(blocks._turn, HEADS, 8), (blocks._turn_backward, HEADS, 8), (blocks._gate, GATE, 4), (blocks._gate_backward, GATE, 4),
         (blocks._gate_plus, GATE, 4), (blocks._gate_plus_backward, GATE, 4), (norms._added_norm, NORM, norms.WARPS),
         (norms._added_norm_backward, BACK, norms.WARPS_BACK)]
found = {name for module in (blocks, norms) for name, value in vars(module).items() if hasattr(value, "arg_names")}
assert found - {case[0].__name__ for case in CASES} == {"_load", "_sines", "_store", "_scale", "_copy", "_row"}, found
for kernel, constants, warps in CASES:
    names = kernel.arg_names
    given = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    signature = {name: "constexpr" if name in constants else KINDS.get(name, "*bf16") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(kernel.__name__, len(made.asm["cubin"]))
"""


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HOPPER], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
