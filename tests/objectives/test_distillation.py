from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.objectives.scores import centred_targets, next_centre, same, sinkhorn_targets
from vtp.objectives.distillation import (
    Prices,
    dino_global_loss,
    dino_local_loss,
    distillation_losses,
    ibot_loss,
    koleo_loss,
    sinkhorn_prices,
    updated_centre,
)
from vtp.seeding import generator

FOLDER = Path(__file__).parents[1] / "oracles"
ORACLE = load_file(FOLDER / "dino_losses" / "io.safetensors")
SIZES = json.loads((FOLDER / "dino_losses" / "config.json").read_text())["oracle"]
JOINT = load_file(FOLDER / "vtp_ssl" / "io.safetensors")
TEACHER, STUDENT = SIZES["teacher_temp"], SIZES["student_temp"]


def close(actual: Tensor | None, expected: Tensor, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


def normal(*shape: int, key: str = "rows") -> Tensor:
    return torch.randn(*shape, generator=generator(0, "distillation", key))


def probabilities(*shape: int) -> Tensor:
    return normal(*shape, key="targets").softmax(-1)


# targets


def test_sinkhorn_is_its_naive_loop() -> None:
    logits = normal(6, 4)
    q = [[float((logit / 0.5).exp()) for logit in row] for row in logits.double()]
    for _ in range(3):
        for k in range(4):
            mass = sum(row[k] for row in q)
            for row in q:
                row[k] /= mass
        for i in range(6):
            mass = sum(q[i])
            q[i] = [value / mass for value in q[i]]
    close(sinkhorn_targets(logits, 0.5), torch.tensor(q))


def test_many_iterations_use_every_prototype_equally() -> None:
    targets = sinkhorn_targets(normal(12, 4), 0.5, iterations=200)
    close(targets.sum(0), torch.full((4,), 3.0), atol=1e-4)


def test_padding_neither_gives_nor_gets_targets() -> None:
    logits, valid = normal(7, 5), torch.tensor([True, False, True, True, False, True, True])
    padded = logits.clone()
    padded[~valid] = torch.tensor([torch.nan, 1e4, -1e4, torch.inf, 0.0])
    targets = sinkhorn_targets(padded, 0.1, valid=valid)
    close(targets[valid], sinkhorn_targets(logits[valid], 0.1))


def test_without_a_valid_row_prototypes_cost_nothing() -> None:
    assert sinkhorn_prices(same, [normal(3, 5)], 0.1, valid=[torch.zeros(3, dtype=torch.bool)]).abs().sum() == 0


def test_pieces_are_balanced_as_a_whole() -> None:
    features, prototypes, valid = normal(9, 3), normal(6, 3, key="prototypes"), torch.arange(9) != 4

    def score(rows: Tensor) -> Tensor:
        return rows @ prototypes.T

    pieces, masks = features.split([2, 4, 3]), valid.split([2, 4, 3])
    close(sinkhorn_prices(score, pieces, 0.1, valid=masks), sinkhorn_prices(score, [features], 0.1, valid=[valid]))
    centre = normal(6, key="centre")
    expected = 0.9 * centre + 0.1 * score(features[valid]).mean(0)
    close(updated_centre(centre, score, pieces, 0.9, valid=masks), expected)
    close(updated_centre(centre, score, [features], 0.9, valid=[valid]), expected)


def test_losses_from_scores_are_dino_and_ibot() -> None:
    student, cls, patches = normal(3 + 3 + 4 + 6, 5), normal(6, 5, key="cls"), normal(4, 5, key="patches")
    prices, weights = Prices(torch.tensor(0.05), normal(5, key="a"), normal(5, key="b")), torch.tensor([0.5, 0.5, 1.0, 0.0])
    dino, ibot = distillation_losses(student, cls, patches, prices, weights, 0.1)
    targets = (cls / 0.05 - prices.cls).softmax(-1).view(2, 3, 5)
    expected = dino_global_loss(student[:6], targets, 0.1, num_local=2) + dino_local_loss(student[10:], targets, 0.1)
    close(dino, expected)
    close(ibot, ibot_loss(student[6:10], (patches / 0.05 - prices.patches).softmax(-1), weights, 6, 0.1))


def test_sinkhorn_survives_logits_whose_exponentials_do_not_fit() -> None:
    logits = 50 * normal(8, 6)  # up to e^2500 in the plain form, and rows e^-1000 below others
    targets = sinkhorn_targets(logits, 0.04)
    q = logits.double() / 0.04
    for _ in range(3):
        q = q - q.logsumexp(0)
        q = q - q.logsumexp(1, keepdim=True)
    close(targets.sum(1), torch.ones(8))
    close(targets, q.exp().float(), atol=1e-3)


def test_targets_leave_the_logits_alone() -> None:
    logits = normal(4, 3)
    before = logits.clone()
    sinkhorn_targets(logits, 1.0, valid=torch.tensor([True, True, False, True]))
    assert torch.equal(logits, before)


def test_centred_targets_are_their_naive_loop() -> None:
    logits, centre = normal(5, 3), normal(3, key="centre")
    targets = centred_targets(logits, centre, 0.5)
    for i in range(5):
        shifted = [math.exp(float(logits[i, k] - centre[k]) / 0.5) for k in range(3)]
        assert targets[i].tolist() == pytest.approx([value / sum(shifted) for value in shifted], abs=1e-6)


def test_updated_centre_is_its_naive_loop() -> None:
    logits, valid, centre = normal(5, 3), [True, False, True, True, False], normal(3, key="centre")
    mean = torch.zeros(3)
    for i in range(5):
        if valid[i]:
            mean += logits[i] / 3
    close(next_centre(centre, logits, 0.9, torch.tensor(valid)), 0.9 * centre + 0.1 * mean)
    assert torch.equal(next_centre(centre, logits, 0.9, torch.zeros(5, dtype=torch.bool)), centre)


# losses


def test_one_joint_step_is_the_reference_models() -> None:
    swapped = JOINT["targets.dino"]  # the stored teacher rows begin with the second view
    local = dino_local_loss(JOINT["student.student_local_cls_tokens_after_head"], swapped, STUDENT)
    crops = dino_global_loss(JOINT["student.student_global_cls_tokens_after_head"], swapped.flip(0), STUDENT, num_local=3)
    student = JOINT["student.student_global_masked_patch_tokens_after_head"]
    ibot = ibot_loss(student, JOINT["targets.ibot"], JOINT["masks_weight"], len(JOINT["masks"]), STUDENT)
    views = JOINT["student.student_global_cls_tokens"].chunk(2)
    close(local, JOINT["loss.dino_local"])
    close(crops, JOINT["loss.dino_global"])
    close(ibot, JOINT["loss.ibot"])
    close(0.1 * (koleo_loss(views[0]) + koleo_loss(views[1])), JOINT["loss.koleo"])


def test_dino_losses_are_their_naive_loops() -> None:
    crops, rows, width, temperature = 3, 4, 5, 0.2
    local, whole, targets = normal(crops, rows, width), normal(2, rows, width, key="global"), probabilities(2, rows, width)
    local_sum = global_sum = 0.0
    for i in range(rows):
        for view in range(2):
            for crop in range(crops):
                local_sum -= float(targets[view, i] @ (local[crop, i] / temperature).log_softmax(0)) / rows
            global_sum -= float(targets[1 - view, i] @ (whole[view, i] / temperature).log_softmax(0)) / rows
    pieces = 2 * crops + 2
    local_loss = dino_local_loss(local.flatten(0, 1), targets, temperature)
    global_loss = dino_global_loss(whole.flatten(0, 1), targets, temperature, num_local=crops)
    assert local_loss.item() == pytest.approx(local_sum / pieces, abs=1e-5)
    assert global_loss.item() == pytest.approx(global_sum / pieces, abs=1e-5)


def test_no_local_crops_cost_nothing() -> None:
    assert dino_local_loss(torch.zeros(0, 5), probabilities(2, 4, 5), 0.1).item() == 0


def test_ibot_is_its_naive_loop_and_padding_is_free() -> None:
    student, targets, weights = normal(5, 4), probabilities(5, 4), torch.tensor([0.5, 0.5, 1.0, 0.0, 0.0])
    targets[3:] = 0
    loss = 0.0
    for i in range(3):
        loss -= float(weights[i] * (targets[i] @ (student[i] / 0.1).log_softmax(0))) / 8
    assert ibot_loss(student, targets, weights, 8, 0.1).item() == pytest.approx(loss, abs=1e-5)
    shorter = ibot_loss(student[:3], targets[:3], weights[:3], 8, 0.1)
    close(ibot_loss(student, targets, weights, 8, 0.1), shorter)


def test_koleo_is_its_naive_loop() -> None:
    features, loss = normal(6, 3), 0.0
    x = [row / row.norm() for row in features]
    for i in range(6):
        nearest = max((j for j in range(6) if j != i), key=lambda j: float(x[i] @ x[j]))
        loss -= float((x[i] - x[nearest]).norm().log()) / 6
    assert koleo_loss(features).item() == pytest.approx(loss, abs=1e-5)


def test_koleo_takes_opposite_features_as_neighbours_not_themselves() -> None:
    assert koleo_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-torch.tensor(2.0).log().item(), abs=1e-6)


def test_autocast_changes_nothing() -> None:
    student, targets, weights = normal(8, 5), probabilities(2, 4, 5), torch.ones(8)

    def all_of_them() -> list[Tensor]:
        return [
            sinkhorn_targets(student, 0.05).sum(0),
            centred_targets(student, student[0], 0.05).sum(0),
            next_centre(student[0], student, 0.9),
            dino_local_loss(student, targets, 0.1),
            dino_global_loss(student, targets, 0.1, num_local=2),
            ibot_loss(student, F.softmax(student, -1), weights, 8, 0.1),
            koleo_loss(student),
        ]

    expected = all_of_them()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = all_of_them()
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
