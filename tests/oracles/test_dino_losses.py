"""DINOv2's targets, centres, losses and their gradients, and the parts of its schedules that are ours, too."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.objectives.scores import centred_targets, next_centre, sinkhorn_targets
from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.config import Ramp
from vtp.data.masks import listed
from vtp.objectives.distillation import (
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    koleo_loss,
)
from vtp.schedules import ramp

ORACLE = load_file(FOLDER / "dino_losses" / "io.safetensors")
SIZES = json.loads((FOLDER / "dino_losses" / "config.json").read_text())["oracle"]
TEACHER, STUDENT, MOMENTUM = SIZES["teacher_temp"], SIZES["student_temp"], SIZES["center_momentum"]
STEPS = sorted(int(name.split(".")[-1]) for name in ORACLE if name.startswith("dino.teacher_logits."))
KINDS = ("center", "sinkhorn")


def check(compare: Compare, name: str, ours: Tensor) -> None:
    """Within 2e-5 of the stored tensor, or of its size where that is larger."""
    size = max(1.0, ORACLE[name].abs().max().item())
    compare("dino_losses", name, ours, ORACLE[name], Tolerance(2e-5 * size, 2e-5 * size))


def test_centres_and_targets_of_successive_steps(compare: Compare) -> None:
    centre = torch.zeros(SIZES["K"])
    for step in STEPS:
        logits = ORACLE[f"dino.teacher_logits.{step}"]
        check(compare, f"dino.center_used.{step}", centre[None])
        check(compare, f"dino.center_targets.{step}", centred_targets(logits, centre, TEACHER))
        centre = next_centre(centre, logits, MOMENTUM)
    check(compare, "dino.center_final", centre[None])


def test_patch_centre_and_targets(compare: Compare) -> None:
    first, second = ORACLE["ibot.teacher_logits.0"], ORACLE["ibot.teacher_logits.1"]
    nothing = torch.zeros(SIZES["K"])
    check(compare, "ibot.center_targets.0", centred_targets(first, nothing, TEACHER))
    centre = next_centre(nothing, first, MOMENTUM)
    check(compare, "ibot.center_after_first", centre[None, None])
    check(compare, "ibot.center_targets.1", centred_targets(second, centre, TEACHER))
    check(compare, "ibot.sinkhorn_targets", sinkhorn_targets(second, TEACHER))


@pytest.mark.parametrize("kind", KINDS)
def test_dino(compare: Compare, kind: str) -> None:
    last = ORACLE[f"dino.teacher_logits.{STEPS[-1]}"]
    if kind == "sinkhorn":
        targets = sinkhorn_targets(last, TEACHER)
    else:
        targets = centred_targets(last, ORACLE[f"dino.center_used.{STEPS[-1]}"][0], TEACHER)
    check(compare, f"dino.{kind}.targets", targets)
    local, crops = (ORACLE[f"dino.student_{name}"].clone().requires_grad_() for name in ("local", "global"))
    paired = targets.view(2, SIZES["B"], -1)  # stored in the order of the student's views, so each faces its target
    local_loss = dino_local_loss(local, paired, STUDENT)
    global_loss = dino_global_loss(crops, paired.flip(0), STUDENT, num_local=SIZES["n_local"])
    pieces = 2 * SIZES["n_local"] + 2
    check(compare, f"dino.{kind}.loss_local_sum", local_loss * pieces)
    check(compare, f"dino.{kind}.loss_global_ce", global_loss * pieces / 2)
    check(compare, f"dino.{kind}.loss_scaled", local_loss + global_loss)
    for name, grad in zip(("local", "global"), torch.autograd.grad(local_loss + global_loss, [local, crops]), strict=True):
        check(compare, f"dino.{kind}.grad_{name}", grad)


@pytest.mark.parametrize("kind", KINDS)
def test_ibot(compare: Compare, kind: str) -> None:
    masks, student = ORACLE["ibot.masks"], ORACLE["ibot.student"].clone().requires_grad_()
    places = listed(masks, tuple(sorted(masks.sum(1).tolist(), reverse=True)))
    check(compare, "ibot.masks_weight", places.weights)
    second = ORACLE["ibot.teacher_logits.1"]
    centre = next_centre(torch.zeros(SIZES["K"]), ORACLE["ibot.teacher_logits.0"], MOMENTUM)
    targets = sinkhorn_targets(second, TEACHER) if kind == "sinkhorn" else centred_targets(second, centre, TEACHER)
    loss = ibot_loss(student, targets, places.weights, len(masks), STUDENT)
    check(compare, f"ibot.{kind}.loss", loss)
    check(compare, f"ibot.{kind}.grad_student", torch.autograd.grad(loss, student)[0])


def test_koleo(compare: Compare) -> None:
    features = ORACLE["koleo.features"].clone().requires_grad_()
    loss = koleo_loss(features)
    check(compare, "koleo.loss", loss)
    check(compare, "koleo.grad", torch.autograd.grad(loss, features)[0])
    first, second = ORACLE["koleo.features"].chunk(2)
    check(compare, "koleo.loss_two_views", koleo_loss(first) + koleo_loss(second))


@pytest.mark.parametrize("name", ["wd", "momentum"])
def test_schedules_that_are_half_a_cosine(compare: Compare, name: str) -> None:
    stored = ORACLE[f"sched.{name}"]
    start, end = {"wd": (0.04, 0.4), "momentum": (0.992, 1.0)}[name]
    ours = [ramp(Ramp(start, end, len(stored)), step) for step in range(len(stored))]
    check(compare, f"sched.{name}", torch.tensor(ours, dtype=stored.dtype))


def test_the_rate_after_its_warm_up_is_half_a_cosine(compare: Compare) -> None:
    """The warm-up is not ours: DINOv2's starts at a rate of 0 and reaches the full rate one step early."""
    stored = ORACLE["sched.lr"]
    full, last = stored.max().item(), 1e-6
    warm = int(stored.argmax()) + 1
    length = len(stored) - warm
    ours = [full * i / (warm - 1) for i in range(warm)] + [ramp(Ramp(full, last, length), i) for i in range(length)]
    check(compare, "sched.lr", torch.tensor(ours, dtype=stored.dtype))


def test_the_teachers_temperature_rises_straight_where_ours_follows_a_cosine(compare: Compare) -> None:
    stored = ORACLE["sched.teacher_temp"]
    start, end = stored[0].item(), stored[-1].item()
    rise = int((stored >= end).nonzero()[0]) + 1
    straight = [start + (end - start) * min(i / (rise - 1), 1) for i in range(len(stored))]
    check(compare, "sched.teacher_temp", torch.tensor(straight, dtype=stored.dtype))
    ours = torch.tensor([ramp(Ramp(start, end, rise - 1), i) for i in range(len(stored))], dtype=stored.dtype)
    # The same ends; between them at most this share of the rise apart, where a line and half a cosine are furthest.
    most = max(abs(0.5 * (1 - math.cos(math.pi * x / 1000)) - x / 1000) for x in range(1001))
    assert (ours - stored).abs().max() <= most * (end - start) + 1e-9
    assert (ours[0], ours[-1]) == (stored[0], stored[-1])


def test_every_stored_tensor_is_an_input_or_compared() -> None:
    inputs = {"dino.student_local", "dino.student_global", "ibot.masks", "ibot.student", "koleo.features"}
    inputs |= {f"dino.teacher_logits.{step}" for step in STEPS} | {"ibot.teacher_logits.0", "ibot.teacher_logits.1"}
    dino = {f"dino.center_{kind}.{step}" for kind in ("used", "targets") for step in STEPS} | {"dino.center_final"}
    names = ("targets", "loss_local_sum", "loss_global_ce", "loss_scaled", "grad_local", "grad_global")
    dino |= {f"dino.{kind}.{name}" for kind in KINDS for name in names}
    ibot = {f"ibot.{kind}.{name}" for kind in KINDS for name in ("loss", "grad_student")}
    ibot |= {"ibot.center_targets.0", "ibot.center_targets.1", "ibot.center_after_first"}
    ibot |= {"ibot.sinkhorn_targets", "ibot.masks_weight"}
    rest = {"koleo.loss", "koleo.grad", "koleo.loss_two_views"}
    rest |= {f"sched.{name}" for name in ("lr", "wd", "momentum", "teacher_temp")}
    assert set(ORACLE) == inputs | dino | ibot | rest
