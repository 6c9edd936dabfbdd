"""How much a training compiles: blocks once for each shape, whatever the depth, and nothing after the first step."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from tests.tasks.conftest import batch_of, build
from vtp import compiling
from vtp.compiling import compiled, written
from vtp.engine.checkpoint import State
from vtp.engine.loop import stepper
from vtp.engine.optim import optimizers
from vtp.engine.parallel import compile_blocks


def graphs_of(depth: int) -> list[int]:
    """New graphs of two steps, and of pictures to look at."""
    shape = "width: 32, heads: 2"
    task = build(
        "pretrain",
        f"model.sizes.small={{encoder: {{{shape}, depth: {depth}}}, decoder: {{{shape}, depth: {depth}}},"
        f" text: {{width: 16, heads: 2, depth: {depth}}}}}",
    )
    state, counts = State(task.models.train(), optimizers(task)), [counters["stats"]["unique_graphs"]]
    compile_blocks(task.models)
    one = stepper(task, state, 0, torch.device("cpu"), replayed=False)
    with compiled(True):
        for step in range(2):
            one(batch_of(step), step)
            counts.append(counters["stats"]["unique_graphs"])
        with written():
            task.pictures(batch_of(0))
    counts.append(counters["stats"]["unique_graphs"])
    return [after - before for before, after in itertools.pairwise(counts)]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced and run as they are, which is quicker than compiling them; nothing of it is left for other tests."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **how: real(*args, **how | {"backend": "eager"}))
    # Marked functions are kept once compiled: these are for here, and those of tests before are not met.
    monkeypatch.setattr(compiling, "_fused", functools.cache(compiling._fused.__wrapped__))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_depth_costs_no_graphs_and_later_steps_and_pictures_none(traced):
    shallow = graphs_of(2)
    torch._dynamo.reset()
    assert graphs_of(4) == shallow
    assert 0 < shallow[0] < 32
    assert shallow[1:] == [0, 0]
