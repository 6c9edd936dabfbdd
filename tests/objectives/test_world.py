"""Two processes, each with half of the rows, give the loss and the averaged gradients of one process with all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.objectives.scores import centred_targets, next_centre, sinkhorn_targets
from vtp import dist
from vtp.objectives.adversarial import adaptive_weight, hinge_discriminator, last_layer_gradient, lecam
from vtp.objectives.alignment import alignment_loss
from vtp.objectives.contrastive import clip_loss, siglip_loss
from vtp.objectives.distillation import (
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    koleo_loss,
)
from vtp.objectives.flow_matching import flow_terms, interpolate, velocity_target
from vtp.objectives.reconstruction import l1_loss
from vtp.seeding import generator

WORLD, ROWS, WIDTH, PROTOTYPES = 2, 8, 6, 10
Tensors = dict[str, Tensor]


def normal(key: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "world", key))


def mine(value: Tensor, axis: int = 0) -> Tensor:
    """This rank's share of a tensor of the global batch."""
    share = dist.rows(value.shape[axis])
    return value.narrow(axis, share.start, share.stop - share.start)


def rows(key: str, parameter: Tensor, *views: int) -> Tensor:
    """Rows (view-major where there are views) that hang on a parameter all ranks share."""
    value = mine(normal(key, *views, ROWS, WIDTH), axis=len(views))
    return (value @ parameter).flatten(0, -2)


def clip(w: Tensor) -> Tensor:
    image, text = F.normalize(rows("image", w), dim=-1), F.normalize(rows("text", w), dim=-1)
    return clip_loss(image, text, w.square().sum().sqrt())


def siglip(w: Tensor) -> Tensor:
    image, text = F.normalize(rows("image", w), dim=-1), F.normalize(rows("text", w), dim=-1)
    return siglip_loss(image, text, w.square().sum().sqrt(), w.sum())


def siglip_in_pieces(w: Tensor) -> Tensor:
    image, text = F.normalize(rows("image", w), dim=-1), F.normalize(rows("text", w), dim=-1)
    return siglip_loss(image, text, w.square().sum().sqrt(), w.sum(), chunk=3)


def dino_sinkhorn(w: Tensor) -> Tensor:
    teacher = rows("teacher", w.detach(), 2)
    targets = sinkhorn_targets(teacher, 0.1).view(2, -1, PROTOTYPES)
    local = dino_local_loss(rows("local", w, 3), targets, 0.2)
    return local + dino_global_loss(rows("global", w, 2), targets, 0.2, num_local=3)


def dino_centred(w: Tensor) -> Tensor:
    teacher = rows("teacher", w.detach(), 2)
    centre = next_centre(normal("centre", PROTOTYPES), teacher, 0.5)
    targets = centred_targets(teacher, centre, 0.1).view(2, -1, PROTOTYPES)
    return dino_local_loss(rows("local", w, 3), targets, 0.2)


def ibot(w: Tensor) -> Tensor:
    valid = mine(torch.tensor([True, False, False, True, True, True, True, True]))  # ranks hold unequally many hidden patches
    teacher, student = rows("teacher", w.detach()), rows("student", w)
    targets = sinkhorn_targets(teacher, 0.1, valid=valid)
    centre = next_centre(normal("centre", PROTOTYPES), teacher, 0.5, valid)
    both = targets + centred_targets(teacher, centre, 0.1)
    weights = mine(torch.rand(ROWS, generator=generator(0, "world", "weights"))) * valid
    return ibot_loss(student, both, weights, 4 // dist.world(), 0.2)


def koleo(w: Tensor) -> Tensor:
    return koleo_loss(rows("features", w))


def reconstruction(w: Tensor) -> Tensor:
    decoded = rows("decoded", w)
    latents, features = decoded.view(-1, 5, 2, 1), mine(normal("aligned", ROWS, 5, 2, 1))
    terms = alignment_loss(latents, features, distance_margin=0.1, cosine_margin=0.2)
    return l1_loss(decoded, mine(normal("pictures", ROWS, PROTOTYPES))) + terms["distance"] + terms["cosine"]


def flow(w: Tensor) -> Tensor:
    noise, data = mine(normal("noise", ROWS, 5, 2, 1)), mine(normal("data", ROWS, 5, 2, 1))
    x = interpolate(noise, data, mine(normal("t", ROWS).sigmoid())).flatten(1)
    terms = flow_terms((x * rows("velocity", w)).view(-1, 5, 2, 1), velocity_target(noise, data))
    return terms["velocity"] + terms["cosine"]


def adversarial(w: Tensor) -> Tensor:
    real, fake = rows("real", w), rows("fake", w)
    h = mine(normal("fake", ROWS, WIDTH))
    weight = adaptive_weight(
        last_layer_gradient(fake.detach() / len(fake), h, channels=-1),
        last_layer_gradient(fake.detach().cos() / len(fake), h, channels=-1),
        most=1e4,
    )
    anchors = torch.tensor(0.4), torch.tensor(-0.3)
    return hinge_discriminator(real, fake) * weight + lecam(real, fake, *anchors)


CASES: dict[str, Callable[[Tensor], Tensor]] = {
    case.__name__: case
    for case in (
        clip,
        siglip,
        siglip_in_pieces,
        dino_sinkhorn,
        dino_centred,
        ibot,
        koleo,
        reconstruction,
        flow,
        adversarial,
    )
}


def losses_and_gradients() -> Tensors:
    """The loss of each case and its gradient at the shared parameter, both averaged over ranks."""
    found: Tensors = {}
    for name, case in CASES.items():
        w = normal("w", WIDTH, PROTOTYPES).requires_grad_()
        loss = case(w)
        loss.backward()
        assert w.grad is not None
        found[f"{name}.loss"], found[f"{name}.grad"] = dist.mean(loss.detach()), dist.mean(w.grad)
    return found


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        save_file(losses_and_gradients(), f"{folder}/{rank}.safetensors")
        dist.barrier()
    finally:
        dist.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Tensors]:
    folder = tmp_path_factory.mktemp("world")
    mp.spawn(one_rank, args=(str(folder),), nprocs=WORLD)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> Tensors:
    return losses_and_gradients()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(case: str, ranks: list[Tensors], alone: Tensors) -> None:
    for found in ranks:
        torch.testing.assert_close(found[f"{case}.loss"], alone[f"{case}.loss"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[f"{case}.grad"], alone[f"{case}.grad"], atol=2e-5, rtol=1e-4)
    assert alone[f"{case}.grad"].abs().max() > 1e-3
