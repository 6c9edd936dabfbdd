"""Optimizers, their groups and rates, and averaged copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtp.schedules import rate
from vtp.tasks.base import Average, Phase, Task


def optimizers(task: Task) -> dict[str, torch.optim.AdamW]:
    """One AdamW per phase. Weight decay falls on matrices only: not on norms, biases, tokens, scales."""
    return {phase.name: adamw(phase, recordable=trained(phase)[0].device.type == "cuda") for phase in task.phases}


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Everything an optimizer updates."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def adamw(phase: Phase, *, recordable: bool) -> torch.optim.AdamW:
    """The optimizer of one phase.

    Args:
        recordable: rates are tensors beside the parameters, so that a recorded step reads the rate of the next; for a GPU.
    """
    parameters, options = trained(phase), phase.optimizer
    late = {id(p) for module in phase.late for p in module.parameters()}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if _is_matrix(p) == decayed and (id(p) in late) == waits]}
        | {"weight_decay": options.weight_decay if decayed else 0.0, "from": phase.late_from if waits else 0}
        for waits in (False, True)
        for decayed in (True, False)
    ]
    for group in groups:
        # A tensor for each group: a default would be one tensor for all of them, and the last rate set the rate of all.
        group["lr"] = torch.tensor(options.rate, device=parameters[0].device) if recordable else options.rate
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=options.betas, fused=True, capturable=recordable)


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether something is multiplied by it; not a number for each channel, nor tokens (1, n, D), which join every batch."""
    return parameter.squeeze().dim() >= 2 and not (parameter.dim() == 3 and len(parameter) == 1)


def trained(phase: Phase) -> list[nn.Parameter]:
    """The parameters a phase updates, each once, in the order of its modules; what is frozen from the start stays out."""
    found = {id(p): p for module in phase.modules for p in module.parameters() if p.requires_grad}
    return list(found.values())


def set_rate(optimizer: torch.optim.Optimizer, phase: Phase, step: int, steps: int) -> None:
    """Give every group this step's learning rate, or 0 where its turn has not come."""
    for group in optimizer.param_groups:
        value = rate(phase.optimizer, step, steps, phase.start) if step >= group.get("from", 0) else 0.0
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def accumulate(total: Tensor, parameters: list[nn.Parameter]) -> None:
    """Differentiate `total`; what that gives `parameters` is added to the gradients they have, all in a few launches.

    The sums are those that autograd makes, which launches a kernel for each parameter.
    """
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    total.backward()
    sums: list[Tensor] = []
    added: list[Tensor] = []
    for p, old in zip(parameters, before, strict=True):
        if old is not None and p.grad is not None:
            sums.append(old)
            added.append(p.grad)
        if old is not None:
            p.grad = old
    if sums:
        torch._foreach_add_(sums, added)


def clip(parameters: list[nn.Parameter], most: float | None) -> Tensor:
    """Scale the gradients to a global norm of at most `most`; the norm before that, a 0-d tensor."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if most is not None:
        torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def average(pair: Average, step: int) -> None:
    """Move `target` towards `source`, parameters by the decay and buffers outright."""
    weight = 1 - pair.decay(step)
    targets: list[Tensor] = list(pair.target.parameters())
    sources: list[Tensor] = list(pair.source.parameters())
    torch._foreach_lerp_(targets, sources, weight)
    for target, source in zip(pair.target.buffers(), pair.source.buffers(), strict=True):
        target.copy_(source)
