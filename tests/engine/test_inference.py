from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tasks.conftest import SMALL, batch_of, build, tokenizer
from vtp.config import load
from vtp.engine.inference import put_to_work, same_shape
from vtp.engine.parallel import compile_blocks
from vtp.models.dit import DiT
from vtp.seeding import generator


def test_a_compiled_function_sees_one_shape_only() -> None:
    sizes = []

    def double(rows: Tensor, factors: Tensor) -> Tensor:
        sizes.append(len(rows))
        return rows * factors[:, None]

    rows, factors = torch.randn(10, 3, generator=generator(0, "rows")), torch.arange(10)
    found = [same_shape(double, 4, compiled=True)(*part) for part in zip(rows.split(4), factors.split(4), strict=True)]
    assert sizes == [4, 4, 4]
    assert torch.equal(torch.cat(found), rows * factors[:, None])


def test_nothing_is_padded_without_compilation() -> None:
    assert same_shape(torch.neg, 4, compiled=False) is torch.neg


def test_a_processor_keeps_float32() -> None:
    model = put_to_work(tokenizer(load(SMALL)), torch.device("cpu"), compiled=False)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=generator(0, "pixels"))
    with torch.inference_mode():
        eager = tokenizer(load(SMALL))
        expected = eager.encode(pixels), eager.decode(eager.encode(pixels))
        compiled = put_to_work(tokenizer(load(SMALL)), torch.device("cpu"), compiled=True)
        found = compiled.encode(pixels), compiled.decode(eager.encode(pixels))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_one_compilation_serves_all_blocks_of_a_transformer() -> None:
    model, batch = DiT(replace(build("dit").models["dit"].options, depth=3)), batch_of(0)
    model.init_weights(generator(0, "dit"))
    for parameter in model.parameters():  # gates start at zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator(1, "dit"))
    t = torch.rand(8, generator=generator(0, "t"))
    expected = model(batch["latents"], t, batch["labels"])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(model)
    found = model(batch["latents"], t, batch["labels"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # with gradients, as in a training
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
