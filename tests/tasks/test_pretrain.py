"""Joint pre-training however it is cut and compiled: the same losses and gradients, in float64 where numbers must be equal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.tasks.conftest import batch_of, build
from vtp.compiling import compiled
from vtp.data.masks import listed
from vtp.engine.parallel import compile_blocks
from vtp.seeding import Draws, generator
from vtp.tasks.base import Backward, Report


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch):
    """Everything in float64, where the code asks for float32 too: two orders of summation then differ by 1e-12."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(task, draws: Draws | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a step reports, and its gradients."""
    scalars: dict[str, Tensor] = {}
    for item in task.passes("pretrain", batch_of(3), draws or Draws(0, 3)):
        if isinstance(item, Backward):
            item.total().backward()
        elif isinstance(item, Report):
            scalars |= item.scalars
    return scalars, {name: p.grad for name, p in task.models.named_parameters() if p.grad is not None}


def same(first, second, tolerance: float) -> None:
    """Equal up to a part of each tensor's largest number: rounding goes by the terms of a sum, not by what they leave of it."""
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            least = tolerance * float(theirs[name].abs().max())
            torch.testing.assert_close(ours[name], theirs[name], atol=least, rtol=0, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("share", ["true", "false"])
@pytest.mark.parametrize("targets", ["sinkhorn", "centring"])
def test_pieces_are_the_undivided_batch_in_float64(float64, targets, share):
    settings = (
        f"pretrain.ssl.targets={targets}",
        f"pretrain.share_clip_view={share}",
        "pretrain.drop_path=0.2",
        "pretrain.ssl.mask_probability=0.8",
    )
    whole, cut = build("pretrain", *settings), build("pretrain", *settings, microbatch=2)
    same(step(whole), step(cut), 1e-9)
    centres = [(task.teacher.cls_centre, task.teacher.patch_centre) for task in (whole, cut)]
    for ours, theirs in zip(*centres, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
        assert bool(ours.any()) == (targets == "centring")


def test_sharing_the_clip_view_is_a_pass_of_its_own_over_the_same_view(float64, monkeypatch):
    settings = ("pretrain.objective=clip+ae", "pretrain.drop_path=0.2")
    shared = build("pretrain", *settings, "pretrain.share_clip_view=true")
    apart = build("pretrain", *settings)
    for task in (shared, apart):
        task.tokenizer.encoder.rope_embed.dtype = torch.float64
    rows = Draws(0, 3).subset("reconstruction_subset", 8, 4)

    # The pass of its own sees the clip view and its drops in the rows that the subset holds.
    from vtp.tasks import pretrain

    view = pretrain.clip_view(batch_of(3)["images"], Draws(0, 3), 8, apart.params.views, size=apart.image_size)

    class Same:
        def of(self, part: slice) -> Tensor:
            return view.of()[rows][part]

    monkeypatch.setattr(pretrain, "reconstruction_view", lambda *args, **kwargs: Same())
    own = apart._keep
    monkeypatch.setattr(
        apart,
        "_keep",
        lambda draws, purpose, total: own(draws, "clip_drop", 8)[rows] if total == 4 else own(draws, purpose, total),
    )
    same(step(shared), step(apart), 1e-9)


def test_branches_that_stay_weigh_for_those_that_are_dropped():
    task = build("pretrain", "pretrain.drop_path=0.25")
    factors = torch.stack([task._keep(Draws(0, step), "clip_drop", 8) for step in range(100)])
    assert factors.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(factors.mean()) == pytest.approx(1, abs=0.03)


def test_the_student_learns_from_what_the_teacher_sees():
    task = build("pretrain", "pretrain.objective=ssl+ae")
    before, _ = step(task)
    # At the start both are the same network; they part here, and only the targets can tell.
    with torch.no_grad():
        task.teacher.encoder.norm.weight[::2] *= -1
    after, _ = step(task)
    assert before["koleo"] == after["koleo"]
    for term in ("dino", "ibot"):
        assert abs(before[term] - after[term]) > 1e-4, term


def test_running_centres_are_priced_at_the_teachers_temperature():
    """softmax((scores - centre) / temperature), with the centres of the steps before (DINO, arXiv 2104.14294, section 3.1)."""
    task = build("pretrain", "pretrain.ssl.targets=centring")
    centres = task.teacher.cls_centre.normal_(generator=generator(0, "cls")), task.teacher.patch_centre.fill_(0.5)
    before = [centre.clone() for centre in centres]
    lesson = task._lesson(torch.rand(4, 3, 32, 32, generator=generator(0, "crops")), listed(torch.ones(4, 16).bool(), (16,) * 4))
    prices = task._prices([lesson], Draws(0, 10))
    assert float(prices.temperature) == pytest.approx(0.07)
    for price, centre, new in zip((prices.cls, prices.patches), before, centres, strict=True):
        torch.testing.assert_close(price, centre / 0.07)
        assert not torch.equal(centre, new)


def test_similarities_are_scaled_by_100_at_most():
    """CLIP, arXiv 2103.00020, section 2.5."""
    found = []
    for scale in (100.0, 1000.0):
        task = build("pretrain", "pretrain.objective=clip+ae")
        with torch.no_grad():
            task.tokenizer.logit_scale.fill_(math.log(scale))
        found.append(float(step(task)[0]["clip"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_scale_at_its_bound_can_fall_again():
    """Pictures and captions that nothing connects want logits of zero."""
    task = build("pretrain", "pretrain.objective=clip+ae")
    with torch.no_grad():
        task.tokenizer.logit_scale.fill_(math.log(101))
    _, grads = step(task)
    assert grads["tokenizer.logit_scale"] > 0
    assert task.tokenizer.logit_scale.exp().item() == pytest.approx(100)


def test_an_undecodable_division_is_named():
    with pytest.raises(ValueError, match=r"8 pictures of a rank do not divide into micro-batches of 3; set run\.microbatch"):
        step(build("pretrain", microbatch=3))


def test_a_piece_without_a_picture_to_reconstruct_is_named():
    with pytest.raises(ValueError, match=r"run\.microbatch=1 does not divide by 2"):
        build("pretrain", "pretrain.share_clip_view=true", microbatch=1)


@pytest.mark.slow
def test_compiled_is_as_written():
    """Both are off by 1e-5 of float64's gradients, by rounding, and by 3e-6 of each other."""
    plain, fast = build("pretrain"), build("pretrain")
    expected = step(plain)
    compile_blocks(fast.models)
    with compiled(True):
        found = step(fast)
    same(found, expected, 2e-5)
