"""What is decayed, how gradients are clipped, and how averages follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tasks.conftest import batch_of, build
from vtp.engine.checkpoint import State
from vtp.engine.loop import stepper
from vtp.engine.optim import accumulate, adamw, average, clip, optimizers, set_rate
from vtp.tasks.base import Average


def test_decay_falls_on_matrices_only():
    task = build("pretrain", "tokenizer.encoder.registers=2")
    names = {id(p): name for name, p in task.models.named_parameters()}
    (optimizer,) = optimizers(task).values()
    decayed: set[str] = set()
    plain: set[str] = set()
    for group in optimizer.param_groups:
        found = {0.05: decayed, 0.0: plain}[group["weight_decay"]]
        found |= {names[id(p)].removeprefix("tokenizer.") for p in group["params"]}
    assert {"encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.qkv.weight", "text.token_embedding.weight"} <= decayed
    assert {"encoder.cls_token", "encoder.mask_token", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias"} <= plain
    assert {"logit_scale", "head.last_layer.weight_g", "encoder.storage_tokens"} <= plain
    assert not decayed & plain


@pytest.mark.parametrize(
    "name", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def test_prototypes_wait_and_then_learn_like_everything_else(name):
    task, device = build("pretrain", "pretrain.ssl.freeze_last_layer=3"), torch.device(name)
    task.to(device)
    state = State(task.models, optimizers(task))
    one = stepper(task, state, 0, device, replayed=False)

    def last_layer_moves(step: int) -> bool:
        layer, hidden = task.models["head"].last_layer.weight_v, task.models["head"].mlp[0].weight
        before = layer.clone(), hidden.clone()
        one({key: value.to(device) for key, value in batch_of(step).items()}, step)
        assert not torch.equal(hidden, before[1])
        return not torch.equal(layer, before[0])

    assert [last_layer_moves(step) for step in range(1, 5)] == [False, False, True, True]


@pytest.mark.parametrize("recordable", [False, True])
def test_only_the_rate_of_what_waits_is_zero(recordable):
    """Also where rates are tensors, as on a GPU, and after a resume."""
    (phase,) = build("pretrain", "pretrain.ssl.freeze_last_layer=3").phases
    optimizer = adamw(phase, recordable=recordable)

    def rates(step: int) -> set[tuple[int, float]]:
        set_rate(optimizer, phase, step, 100)
        return {(group["from"], round(float(group["lr"]), 7)) for group in optimizer.param_groups}

    assert rates(2) == {(0, 1e-3), (3, 0.0)}
    assert rates(3) == {(0, 1e-3), (3, 1e-3)}
    optimizer.load_state_dict(optimizer.state_dict())
    assert rates(2) == {(0, 1e-3), (3, 0.0)}


@pytest.mark.parametrize(("most", "norm"), [(1.0, 1.0), (5.0, 5.0), (20.0, 5.0), (None, 5.0)])
def test_gradients_are_scaled_down_to_a_norm_and_never_up(most, norm):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    assert float(clip(parameters, most)) == 5
    found = torch.cat([p.grad for p in parameters[:2]])
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, -4.0]) * norm / 5)
    assert parameters[2].grad is None


def test_gradients_of_several_passes_are_summed_as_autograd_sums_them():
    torch.manual_seed(0)
    shared, first, second, idle = (nn.Parameter(torch.randn(3)) for _ in range(4))
    leaf = torch.randn(3, requires_grad=True)
    parameters = [shared, first, second, idle]

    def totals():
        yield (shared * first * leaf).sum()
        yield (shared.exp() * second).sum()
        yield shared.sin().sum()

    for total in totals():
        total.backward()
    expected = [p.grad for p in [*parameters, leaf]]
    for p in [*parameters, leaf]:
        p.grad = None
    for total in totals():
        accumulate(total, parameters)
    assert idle.grad is None
    for p, grad in zip([shared, first, second, leaf], [*expected[:3], expected[4]], strict=True):
        assert torch.equal(p.grad, grad)


def test_an_average_moves_by_what_its_decay_leaves_and_takes_buffers_as_they_are():
    target, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        source.weight.fill_(3.0)
        source.running_mean.fill_(7.0)
    average(Average(target, source, lambda step: 1 - 1 / step), 4)
    assert target.weight.tolist() == [1.5, 1.5]
    assert target.running_mean.tolist() == [7.0, 7.0]
