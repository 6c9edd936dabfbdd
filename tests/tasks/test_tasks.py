"""What every task promises the engine."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch

from tests.tasks.conftest import ALL, CUT, batch_of, build
from vtp.config import load
from vtp.engine.checkpoint import State
from vtp.engine.loop import update
from vtp.engine.optim import optimizers
from vtp.seeding import Draws, generator
from vtp.tasks.base import Backward, Report


def gradients(task, step: int) -> dict[str, torch.Tensor]:
    """Gradients of every phase of a step, before any update."""
    found = {}
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch_of(step).items()}
    for phase in task.phases:
        for other in task.phases:
            for module in other.modules:
                module.requires_grad_(other is phase)
        task.models.zero_grad()
        for item in task.passes(phase.name, batch, Draws(0, step)):
            if isinstance(item, Backward):
                item.total().backward()
        found |= {f"{phase.name}/{name}": p.grad.clone() for name, p in task.models.named_parameters() if p.grad is not None}
    return found


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", CUT)
def test_micro_batches_give_the_gradient_of_the_whole_batch(kind):
    whole, split = build(kind), build(kind, microbatch=2)
    for task in (whole, split):
        for model in task.models.values():
            model.requires_grad_(True)
    expected, found = gradients(whole, 3), gradients(split, 3)
    assert expected.keys() == found.keys()
    assert expected
    for name, grad in expected.items():
        scale = grad.abs().max().clamp(min=1e-3)
        assert (found[name] - grad).abs().max() / scale < 2e-3, name


class Kept:
    """What autograd keeps for backward passes, in bytes: at its fullest, parameters left out."""

    def __init__(self, task) -> None:
        self.fixed = {p.untyped_storage().data_ptr() for p in task.models.parameters()}
        self.users: Counter[int] = Counter()
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        class Saved(list):  # a list itself has no weak references
            pass

        # A node whose own output is kept would be kept by it.
        saved, place, size = Saved([tensor.detach()]), tensor.data_ptr(), tensor.nbytes
        if tensor.untyped_storage().data_ptr() not in self.fixed:
            self.users[place] += 1
            self.now += size if self.users[place] == 1 else 0
            self.most = max(self.most, self.now)
            weakref.finalize(saved, self.drop, place, size)
        return saved

    def drop(self, place: int, size: int) -> None:
        self.users[place] -= 1
        self.now -= size if self.users[place] == 0 else 0


@pytest.mark.parametrize("kind", CUT)
def test_micro_batches_hold_the_activations_of_one_piece(kind):
    most = {}
    for microbatch in (None, 2):
        task = build(kind, microbatch=microbatch)
        kept, state = Kept(task), State(task.models.train(), optimizers(task))
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda saved: saved[0]):
            for phase in task.phases:
                update(task, phase, state, batch_of(3), Draws(0, 3))
        most[microbatch] = kept.most
    assert most[2] < 0.4 * most[None]


@pytest.mark.parametrize("microbatch", [None, 2])
def test_a_picture_is_encoded_once_however_a_step_of_the_decoder_is_cut(microbatch, monkeypatch):
    task, seen = build("decoder", microbatch=microbatch), []
    encode = task.tokenizer.encode
    monkeypatch.setattr(task.tokenizer, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    for _ in task.passes("generator", batch_of(3), Draws(0, 3)):
        pass
    assert sum(seen) == task.batch


def test_the_discriminator_sees_both_sides_in_whole_grey_levels(monkeypatch):
    task, seen = build("decoder", "finetune_decoder.augment=0.0"), []
    monkeypatch.setattr(task.discriminator, "forward", lambda pictures: seen.append(pictures) or pictures.mean((1, 2, 3)))
    for phase in ("generator", "discriminator"):
        for _ in task.passes(phase, batch_of(1), Draws(0, 1)):  # the step before the decoder meets it
            pass
    assert len(seen) == 2
    for pictures in seen:
        levels = 127.5 * (pictures + 1)
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ALL)
def test_whatever_a_task_holds_moves_with_it(kind):
    task = build(kind)
    task.to(torch.device("meta"))
    weights = [p for value in vars(task).values() if isinstance(value, torch.nn.Module) for p in value.parameters()]
    buffers = [b for module in task.frozen for b in module.buffers()]  # all that the stand-in of the perceptual distance has
    assert {tensor.device.type for tensor in (*weights, *buffers)} == {"meta"}


@pytest.mark.parametrize("kind", CUT)
def test_micro_batches_report_the_same_numbers(kind):
    def scalars(task) -> dict[str, float]:
        found = {}
        for phase in task.phases:
            for item in task.passes(phase.name, batch_of(3), Draws(0, 3)):
                if isinstance(item, Report):
                    found |= {name: float(value) for name, value in item.scalars.items()}
        return found

    whole, split = scalars(build(kind)), scalars(build(kind, microbatch=2))
    assert whole == pytest.approx(split, rel=2e-3, abs=1e-4)
    assert whole


def test_the_metric_network_hangs_on_neither_ranks_nor_pieces(monkeypatch):
    """Norms over the batch see all of it: cut in two, its gradient was off by three quarters of itself."""
    from stages import train_metric_network as stage

    asked = []

    def opened(name, params, *, launchable=False):
        asked.append((name, launchable))
        raise InterruptedError

    monkeypatch.setattr(stage, "open_run", opened)
    with pytest.raises(InterruptedError):
        stage.main(load())
    assert asked == [("train_metric_network", False)]
    task, seen = build("metric"), []
    monkeypatch.setattr(task, "network", lambda pixels: seen.append(len(pixels)) or torch.zeros(len(pixels), 5))
    list(task.passes("metric", batch_of(0), Draws(0, 0)))
    assert (seen, task.microbatch) == ([8], None)


@pytest.mark.parametrize(
    ("objective", "parts", "terms"),
    [
        ("ae", {"tokenizer"}, {"l1", "lpips"}),
        ("clip+ae", {"tokenizer"}, {"clip", "l1", "lpips"}),
        ("ssl+ae", {"tokenizer", "head", "teacher"}, {"dino", "ibot", "koleo", "l1", "lpips"}),
        ("clip+ssl+ae", {"tokenizer", "head", "teacher"}, {"clip", "dino", "ibot", "koleo", "l1", "lpips"}),
    ],
)
def test_an_absent_objective_has_neither_parts_nor_terms(objective, parts, terms):
    task = build("pretrain", f"pretrain.objective={objective}")
    assert set(task.models) == parts
    assert hasattr(task.tokenizer, "text") == ("clip" in objective)
    reported = [item.scalars for item in task.passes("pretrain", batch_of(0), Draws(0, 0)) if isinstance(item, Report)]
    assert {name for scalars in reported for name in scalars} == terms


@pytest.mark.parametrize("microbatch", [None, 2])
def test_the_sigmoid_contrast_trains_scale_and_bias_from_siglips_start(microbatch):
    task = build("pretrain", "pretrain.contrast=sigmoid", microbatch=microbatch)
    scale, bias = task.tokenizer.logit_scale, task.tokenizer.logit_bias
    assert (scale.exp().item(), bias.item()) == pytest.approx((10, -10))
    reported = {}
    for item in task.passes("pretrain", batch_of(0), Draws(0, 0)):
        if isinstance(item, Report):
            reported |= item.scalars
        else:
            item.total().backward()
    assert reported["clip"].item() == pytest.approx(10, abs=1.5)  # one match in eight is asked at a logit of about -10
    assert scale.grad.abs() > 0
    # Every match wants to be likelier by about 1 - sigmoid(-10), so the bias rises at a rate of almost one.
    assert bias.grad.item() == pytest.approx(-1, abs=0.1)


def test_the_sigmoid_contrast_needs_a_bias():
    softmax = build("pretrain")
    with pytest.raises(ValueError, match="needs a logit bias"):
        type(softmax)(
            load(["pretrain.contrast=sigmoid"]).pretrain,
            softmax.tokenizer,
            softmax.perceptual,
            image_size=32,
            generator=generator(0, "head"),
            microbatch=None,
        )


def test_only_reconstruction_reads_the_bottleneck_unless_all_do():
    def touched(*overrides: str) -> bool:
        task = build(
            "pretrain", "pretrain.weights={clip: 1.0, dino: 1.0, ibot: 1.0, koleo: 0.1, l1: 0.0, lpips: 0.0}", *overrides
        )
        for item in task.passes("pretrain", batch_of(0), Draws(0, 0)):
            if isinstance(item, Backward):
                item.total().backward()
        grad = task.tokenizer.encoder.feature_bottleneck.weight.grad
        return grad is not None and bool(grad.abs().max() > 0)

    assert not touched()
    assert touched("tokenizer.encoder.bottleneck_for_all=true")


def test_a_missing_weight_is_an_error():
    with pytest.raises(ValueError, match="'b' has no weight"):
        Backward({"a": torch.zeros(()), "b": torch.zeros(())}, {"a": 1.0}).total()


def test_the_discriminator_sees_decoded_pictures_in_8_bits(monkeypatch):
    """Otherwise it would tell them from real ones by their fractions of a grey level."""
    task, seen = build("decoder", "finetune_decoder.augment=0"), []
    own = task.discriminator.forward
    monkeypatch.setattr(task.discriminator, "forward", lambda pictures: seen.append(pictures.detach()) or own(pictures))
    for phase in ("generator", "discriminator"):
        list(task.passes(phase, batch_of(3), Draws(0, 3)))
    of_generator, _, decoded = ((pictures + 1) * 127.5 for pictures in seen)
    assert (decoded - decoded.round()).abs().max() < 1e-3
    assert (of_generator - of_generator.round()).abs().max() > 0.1


def test_a_decoder_learns_from_latents_with_noise_the_same_however_the_batch_is_cut():
    def made(noise: float, microbatch: int | None) -> torch.Tensor:
        task = build("decoder", f"finetune_decoder.latent_noise={noise}", microbatch=microbatch)
        list(task.passes("generator", batch_of(3), Draws(0, 3)))
        return torch.cat(task.made)

    assert (made(0.8, None) - made(0.0, None)).abs().mean() > 0.01
    torch.testing.assert_close(made(0.8, 2), made(0.8, None), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_dropped_class_is_the_null_label(monkeypatch, rate):
    task, seen = build("dit", f"dit.class_dropout={rate}"), []
    own = task.model.forward
    monkeypatch.setattr(task.model, "forward", lambda x, t, labels: seen.append(labels) or own(x, t, labels))
    list(task.passes("dit", batch_of(3), Draws(0, 3)))
    (labels,) = seen
    assert torch.equal(labels, torch.full((8,), 5) if rate else batch_of(3)["labels"])


def test_the_discriminator_waits_for_its_step():
    task = build("decoder")
    assert not list(task.passes("discriminator", batch_of(0), Draws(0, 0)))
    names = {n for item in task.passes("generator", batch_of(1), Draws(0, 1)) if isinstance(item, Report) for n in item.scalars}
    assert names == {"l1", "lpips"}
    names = {n for item in task.passes("generator", batch_of(2), Draws(0, 2)) if isinstance(item, Report) for n in item.scalars}
    assert names == {"l1", "lpips", "adversarial", "adaptive_weight"}


def test_the_generators_gradient_is_that_of_the_plain_weighted_sum():
    """The surrogate at the last layer's output against one backward through everything."""
    task = build("decoder")
    expected = build("decoder")
    found = gradients(task, 3)
    pixels = None
    from vtp.data.views import random_view
    from vtp.models.tokenizer import denormalize, normalize
    from vtp.objectives.adversarial import hinge_generator
    from vtp.objectives.reconstruction import l1_loss

    draws = Draws(0, 3)
    pixels = random_view(
        batch_of(3)["images"], draws, "view", 8, scale=expected.params.crop_scale, size=expected.image_size, flip=True
    ).of()
    decoded = expected.decoder(expected.tokenizer.encode(pixels))
    signed = 2 * denormalize(decoded) - 1
    weights = expected.params.weights
    rebuilt = (
        weights["l1"] * l1_loss(decoded, normalize(pixels))
        + weights["lpips"] * expected.perceptual(signed, 2 * pixels - 1).mean()
    )
    adversarial = hinge_generator(expected.discriminator(expected._augment(signed, slice(0, 8), draws, "augment_generator")))
    last = expected.decoder.proj_out.weight
    strong = torch.autograd.grad(rebuilt, last, retain_graph=True)[0].norm()
    weak = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
    (rebuilt + weights["adversarial"] * (strong / (weak + 1e-6)).detach() * adversarial).backward()
    for name, parameter in expected.decoder.named_parameters():
        torch.testing.assert_close(found[f"generator/decoder.{name}"], parameter.grad, atol=2e-5, rtol=2e-3)
