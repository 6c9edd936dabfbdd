"""Compilation on demand: functions of tensors that run as written, or as a few fused kernels where `run.compile` asks for it.

A function marked `compilable` draws nothing, waits for nothing, and takes numbers that change from step to step as tensors, so
that one compilation serves a whole training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

SHAPES = 64
"""Shapes that one function or block may be compiled for: views x with and without gradient x kinds of block."""


class _Switch:
    on = False


@contextmanager
def compiled(on: bool) -> Iterator[None]:
    """Within the block, marked functions are compiled for each shape they meet (`on`), or run as they are written."""
    before, _Switch.on = _Switch.on, on
    try:
        yield
    finally:
        _Switch.on = before


@contextmanager
def written() -> Iterator[None]:
    """Within the block everything runs as it is written, modules that are compiled included."""
    if not _Switch.on:
        yield
        return
    with compiled(False), torch.compiler.set_stance("force_eager"):
        yield


def compilable(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that is one graph of tensor operations, for `compiled`."""

    @functools.wraps(function)
    def chosen(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or not _Switch.on:
            return function(*args, **kwargs)
        return _fused(function)(*args, **kwargs)

    return chosen


@functools.cache
def _fused(function: Callable[P, R]) -> Callable[P, R]:
    allow_shapes()
    return torch.compile(function, dynamic=False, fullgraph=True)


def allow_shapes() -> None:
    """Let compiled code be specialised to `SHAPES` shapes, where torch would give up at 8, and be run backwards twice."""
    torch._dynamo.config.recompile_limit = SHAPES
    # A decoder's losses are differentiated twice, one after the other; compiled code would have given its buffers away.
    torch._functorch.config.donated_buffer = False
