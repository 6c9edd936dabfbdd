"""Crops against torchvision's, boxes against its distribution, colour operations against its functional forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as reference
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from vtp import dist
from vtp.config import ViewParams
from vtp.data import colour as colours
from vtp.data import views
from vtp.seeding import Draws, generator

PARAMS = ViewParams(
    clip_scale=(0.8, 1.0),
    reconstruction_scale=(0.6, 1.0),
    global_size=32,
    global_scale=(0.32, 1.0),
    local_size=16,
    local_scale=(0.05, 0.32),
    local_crops=3,
    jitter=0.8,
    grayscale=0.2,
    blur=(0.5, 0.1, 0.9),
    solarize=0.2,
)


def pictures(count: int, height: int = 40, width: int = 48) -> Tensor:
    """Smooth colours under a little noise, in [0, 1], as photographs are; with some grays, blacks and whites."""
    coarse = torch.rand(count, 3, 6, 6, generator=generator(0, "pictures"))
    fine = torch.rand(count, 3, height, width, generator=generator(1, "pictures"))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    pixels = (1.4 * smooth - 0.2 + 0.1 * fine).clamp(0, 1)
    pixels[0, :, :4] = pixels[0, :1, :4]
    return pixels


def cut(image: Tensor, box: Tensor, flip: bool, size: int) -> Tensor:
    y0, x0, y1, x1 = (int(edge) for edge in box)
    part = reference.resize(image[:, y0:y1, x0:x1], [size, size], InterpolationMode.BICUBIC, antialias=True)
    return part.flip(-1) if flip else part


@pytest.mark.parametrize("size", [7, 24, 90])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_crop_is_torchvisions_antialiased_bicubic(size: int, kind: str) -> None:
    images = pictures(24)
    images = images.mul(255).round().byte() if kind == "uint8" else images
    draws = Draws(0, 0)
    boxes = views.random_boxes(draws, "box", 24, 40, 48, (0.02, 1.0))
    flip = draws.uniform("flip", 24) < 0.5
    made = views.crop(images, boxes, flip, size)
    scale = 255.0 if kind == "uint8" else 1.0
    expected = torch.stack([cut(*args, size).float() / scale for args in zip(images, boxes, flip, strict=True)]).clamp(0, 1)
    assert made.shape == (24, 3, size, size)
    assert made.dtype == torch.float32
    assert (made - expected).abs().max() < (2 / 255 if kind == "uint8" else 1e-5)


def test_crop_never_reads_outside_the_box() -> None:
    images = pictures(3)
    boxes = torch.tensor([[5.0, 6.0, 25.0, 40.0]]).expand(3, 4)
    outside = torch.rand(images.shape, generator=generator(0, "outside"))
    outside[:, :, 5:25, 6:40] = images[:, :, 5:25, 6:40]
    flip = torch.tensor([True, False, True])
    torch.testing.assert_close(views.crop(outside, boxes, flip, 12), views.crop(images, boxes, flip, 12))


def test_several_boxes_for_each_picture_are_crop_major() -> None:
    images, draws = pictures(5), Draws(0, 0)
    windows = views.random_windows(draws, "many", 5, 40, 48, scale=(0.2, 1.0), copies=3)
    made = views.crop(images, *windows, 20)
    for i in range(3):
        rows = slice(5 * i, 5 * i + 5)
        torch.testing.assert_close(made[rows], views.crop(images, windows.boxes[rows], windows.flip[rows], 20))


def test_boxes_follow_torchvisions_distribution() -> None:
    height, width, scale, count = 40, 56, (0.3, 1.0), 4000
    boxes = views.random_boxes(Draws(0, 0), "box", count, height, width, scale)
    assert torch.equal(boxes, boxes.round())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.empty(3, height, width)
        drawn = torch.tensor([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]).float()
    theirs = torch.stack([drawn[:, 0], drawn[:, 1], drawn[:, 0] + drawn[:, 2], drawn[:, 1] + drawn[:, 3]], 1)
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(boxes.quantile(quantiles, 0), theirs.quantile(quantiles, 0), atol=1.5, rtol=0)
    torch.testing.assert_close(torch.corrcoef(boxes.T), torch.corrcoef(theirs.T), atol=0.06, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10), (64, 64)])
def test_boxes_fall_back_to_the_centre_as_torchvision_does(height: int, width: int) -> None:
    scale = (1.5, 2.0)  # larger than the picture: no box fits
    i, j, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), list(scale), [3 / 4, 4 / 3])
    boxes = views.random_boxes(Draws(0, 0), "box", 4, height, width, scale)
    assert torch.equal(boxes, torch.tensor([[i, j, i + h, j + w]]).float().expand(4, 4))


def test_boxes_of_one_pixel_stay_inside() -> None:
    boxes = views.random_boxes(Draws(0, 0), "box", 500, 5, 3, (0.01, 1.0))
    y0, x0, y1, x1 = boxes.unbind(1)
    assert ((y0 >= 0) & (x0 >= 0) & (y1 <= 5) & (x1 <= 3) & (y1 > y0) & (x1 > x0)).all()


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colours.brighten, reference.adjust_brightness, (0.6, 1.4)),
        (colours.contrast, reference.adjust_contrast, (0.6, 1.4)),
        (colours.saturate, reference.adjust_saturation, (0.8, 1.2)),
        (colours.shift_hue, reference.adjust_hue, (-0.1, 0.1)),
        (colours.shift_hue, reference.adjust_hue, (-0.5, 0.5)),
    ],
)
def test_jitter_is_torchvisions(ours, theirs, factors: tuple[float, float]) -> None:
    images = pictures(8)
    drawn = torch.linspace(*factors, 8)
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, drawn.tolist(), strict=True)])
    torch.testing.assert_close(ours(images, drawn), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("radius", [1, 4])
def test_blur_is_torchvisions(radius: int) -> None:
    images, taps = pictures(4), 2 * radius + 1
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    expected = torch.stack(
        [reference.gaussian_blur(image, [taps, taps], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)]
    )
    torch.testing.assert_close(colours.gaussian_blur(images, sigma, radius=radius), expected, atol=1e-6, rtol=0)


def test_blur_has_nine_taps_at_224_and_shrinks_with_the_crops() -> None:
    assert [colours.blur_radius(size) for size in (224, 112, 64, 16)] == [4, 2, 1, 1]
    large = dataclasses.replace(PARAMS, global_size=224)
    for params, low, high in ((large, 0.1, 2.0), (PARAMS, 0.1, 2.0 / 7)):
        sigma = colours.random_colour(Draws(0, 0), "x", 500, params, blur=(1.0,), solarize=(0.0,)).sigma
        assert low <= sigma.min() < low + 0.02
        assert high - 0.02 < sigma.max() <= high


def test_grayscale_and_solarize_are_torchvisions() -> None:
    images = pictures(4)
    torch.testing.assert_close(colours.grayscale(images), reference.rgb_to_grayscale(images))
    torch.testing.assert_close(colours.solarize(images), reference.solarize(images, 0.5))


def test_each_change_touches_the_flagged_pictures_only() -> None:
    images = pictures(64, 16, 16)
    drawn = colours.random_colour(Draws(0, 0), "x", 64, PARAMS, blur=(0.5,), solarize=(0.5,))
    none = torch.zeros_like(drawn.jitter)
    quiet = drawn._replace(jitter=none, gray=none, blur=none, solarize=none)
    assert torch.equal(colours.recolour(images, quiet, radius=1), images)
    for name in ("jitter", "gray", "blur", "solarize"):
        flags = getattr(drawn, name)
        made = colours.recolour(images, quiet._replace(**{name: flags}), radius=1)
        assert 0 < flags.sum() < 64
        assert torch.equal((made != images).flatten(1).any(1), flags)


def test_probabilities_are_the_nominal_ones() -> None:
    drawn = colours.random_colour(Draws(0, 0), "x", 4000, PARAMS, blur=(0.5, 0.1), solarize=(0.0, 0.2))
    rates = {name: getattr(drawn, name).float().unflatten(0, (2, -1)).mean(1) for name in ("jitter", "gray", "blur", "solarize")}
    wanted = {"jitter": [0.8, 0.8], "gray": [0.2, 0.2], "blur": [0.5, 0.1], "solarize": [0.0, 0.2]}
    for name, values in wanted.items():
        torch.testing.assert_close(rates[name], torch.tensor(values), atol=0.03, rtol=0)
    for name, middle, spread in (("brightness", 1, 0.4), ("contrast", 1, 0.4), ("saturation", 1, 0.2), ("hue", 0, 0.1)):
        values = getattr(drawn, name)
        assert middle - spread <= values.min() < middle - 0.98 * spread
        assert middle + 0.98 * spread < values.max() <= middle + spread + 1e-6


def every_view(images: Tensor, draws: Draws, total: int) -> dict[str, Tensor]:
    return {
        "clip": views.clip_view(images, draws, total, PARAMS, size=32).of(),
        "reconstruction": views.reconstruction_view(images, draws, total, PARAMS, size=32).of(),
        "global": views.global_crops(images, draws, total, PARAMS).of(),
        "local": views.local_crops(images, draws, total, PARAMS).of(),
    }


def test_shapes_ranges_and_repeatability() -> None:
    images = pictures(6).mul(255).byte()
    made, again, later = (every_view(images, Draws(0, step), 6) for step in (5, 5, 6))
    sizes = {"clip": (6, 32), "reconstruction": (6, 32), "global": (12, 32), "local": (18, 16)}
    for name, view in made.items():
        rows, size = sizes[name]
        assert view.shape == (rows, 3, size, size)
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
        assert torch.equal(view, again[name])
        assert not torch.equal(view, later[name])
    assert not torch.equal(made["clip"], made["reconstruction"])
    assert not torch.equal(made["global"][:6], made["global"][6:])


def test_whole_pictures_are_themselves_or_resampled() -> None:
    images = pictures(4, 48, 48).mul(255).round().byte()
    torch.testing.assert_close(views.whole(images, 48), images / 255, atol=1e-6, rtol=0)
    theirs = reference.resize(images, [32, 32], InterpolationMode.BICUBIC, antialias=True)
    assert (views.whole(images, 32) - theirs / 255).abs().max() < 2 / 255


def test_each_kind_of_crop_is_blurred_as_often_as_its_parameter_says() -> None:
    images, often = pictures(16), dataclasses.replace(PARAMS, jitter=0.0, grayscale=0.0, solarize=0.0)
    for blur in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        params, sharp = (dataclasses.replace(often, blur=value) for value in (blur, (0.0, 0.0, 0.0)))
        changed = []
        for make in (views.global_crops, views.local_crops):
            made, plain = (make(images, Draws(0, 0), 16, value).of() for value in (params, sharp))
            copies = len(made) // 16
            changed += [(one != other).any().item() for one, other in zip(made.chunk(copies), plain.chunk(copies), strict=True)]
        assert changed == [bool(blur[0]), bool(blur[1]), *[bool(blur[2])] * PARAMS.local_crops]


def test_clip_view_keeps_left_and_right() -> None:
    ramp = torch.linspace(0, 1, 48).expand(64, 3, 40, 48)
    draws = Draws(0, 0)
    clip, rebuilt = (view(ramp, draws, 64, PARAMS, size=16).of() for view in (views.clip_view, views.reconstruction_view))
    rising = {name: (view[..., -1] > view[..., 0]).all((1, 2)).float().mean() for name, view in (("c", clip), ("r", rebuilt))}
    assert rising["c"] == 1
    assert 0.25 < rising["r"] < 0.75


def test_ranks_see_the_views_of_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(8)
    whole = every_view(images, Draws(3, 7), 8)
    monkeypatch.setattr(dist, "world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        shares.append(every_view(images[4 * rank : 4 * rank + 4], Draws(3, 7), 8))
    for name, view in whole.items():
        copies = len(view) // 8
        joined = torch.cat([share[name].unflatten(0, (copies, 4)) for share in shares], 1).flatten(0, 1)
        torch.testing.assert_close(joined, view, atol=1e-6, rtol=0)


def test_draws_can_be_sliced_with_the_pictures() -> None:
    images, draws = pictures(8), Draws(0, 0)
    for crops, copies in ((views.global_crops(images, draws, 8, PARAMS), 2), (views.local_crops(images, draws, 8, PARAMS), 3)):
        whole = crops.of().unflatten(0, (copies, 8))
        for rows in (slice(0, 3), slice(3, 8)):
            torch.testing.assert_close(crops.of(rows).unflatten(0, (copies, -1)), whole[:, rows], atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_and_never_waits() -> None:
    images, draws = pictures(8), Draws(0, 0)
    windows = views.random_windows(draws, "x", 8, 40, 48, scale=(0.3, 1.0))
    drawn = colours.random_colour(draws, "x", 8, PARAMS, blur=(0.5,), solarize=(0.5,))
    expected = colours.recolour(views.crop(images, *windows, 24), drawn, radius=2)
    moved, box, flip = images.cuda(), windows.boxes.cuda(), windows.flip.cuda()
    there = colours.Colour(*(value.cuda() for value in drawn))
    torch.cuda.set_sync_debug_mode("error")
    try:
        every_view(moved, Draws(0, 0, "cuda"), 8)
        made = colours.recolour(views.crop(moved, box, flip, 24), there, radius=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(made.cpu(), expected, atol=2e-3, rtol=0)
