from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vtp.models.dit import DiT, DitOptions
from vtp.sampling import guided
from vtp.seeding import generator

ORACLES = Path(__file__).parents[1] / "oracles"
SMALL = DitOptions(
    latent_channels=5,
    grid=6,
    patch=2,
    width=32,
    depth=2,
    heads=2,
    mlp_ratio=4.0,
    num_classes=3,
    qk_norm=True,
    swiglu=True,
    rope=True,
    rmsnorm=True,
    shift=True,
    learn_sigma=False,
)


def oracle(name: str) -> tuple[DiT, dict[str, Tensor]]:
    folder = ORACLES / name
    cfg = json.loads((folder / "config.json").read_text())["cfg"]
    options = DitOptions(
        latent_channels=cfg["in_channels"],
        grid=cfg["input_size"],
        patch=cfg["patch_size"],
        width=cfg["hidden_size"],
        depth=cfg["depth"],
        heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
        num_classes=cfg["num_classes"],
        qk_norm=cfg["use_qknorm"],
        swiglu=cfg["use_swiglu"],
        rope=cfg["use_rope"],
        rmsnorm=cfg["use_rmsnorm"],
        shift=not cfg["wo_shift"],
        learn_sigma=cfg["learn_sigma"],
    )
    model = DiT(options)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), load_file(folder / "io.safetensors")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["lightningdit_a", "lightningdit_b"])
def test_forward_equals_the_reference_at_every_depth(name: str) -> None:
    model, io = oracle(name)
    seen: dict[str, Tensor] = {}

    def watch(key: str):
        return lambda module, arguments, output: seen.__setitem__(key, output)

    for key, module in (
        ("x", model.x_embedder),
        ("t_embed", model.t_embedder),
        ("y_embed", model.y_embedder),
        ("final_tokens", model.final_layer),
        *((f"block{i}_out", block) for i, block in enumerate(model.blocks)),
    ):
        module.register_forward_hook(watch(key))
    with torch.no_grad():
        out = model(io["x"], io["t"], io["y"])
    close(model.t_embedder.features(io["t"]), io["debug.t_frequencies"])
    close(seen.pop("x") + model.pos_embed, io["debug.tokens_in"])
    for key, value in seen.items():
        close(value, io[f"debug.{key}"])
    close(out, io["out"])


@pytest.mark.parametrize("name", ["lightningdit_a", "lightningdit_b"])
def test_dropped_labels_read_the_null_row(name: str) -> None:
    model, io = oracle(name)
    labels = torch.where(io["drop.ids"] == 1, model.options.num_classes, io["y"])
    close(model.y_embedder(labels), io["drop.y_embed"])


@pytest.mark.parametrize("name", ["lightningdit_a", "lightningdit_b"])
@pytest.mark.parametrize(
    ("output", "time", "start"),
    [
        ("out_no_interval", "t_below", 0.0),
        ("out_interval_below", "t_below", None),
        ("out_interval_above", "t_above", None),
    ],
)
def test_guided_forward_equals_the_reference(name: str, output: str, time: str, start: float | None) -> None:
    model, io = oracle(name)
    start = io["cfg.interval_start"].item() if start is None else start
    velocity = guided(
        model, io["cfg.y"][:2], model.options.num_classes, scale=io["cfg.scale"].item(), interval=(start, 1.0), channels=3
    )
    with torch.no_grad():
        close(velocity(io["cfg.x"][:2], io[f"cfg.{time}"][0].item()), io[f"cfg.{output}"][:2])


@pytest.mark.parametrize("name", ["lightningdit_a", "lightningdit_b"])
def test_tables_are_computed_as_they_were_published(name: str) -> None:
    model, _ = oracle(name)
    fresh = DiT(model.options).state_dict()
    for key in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        close(fresh[key], model.state_dict()[key])


@pytest.mark.parametrize(("width", "hidden"), [(768, 2048), (1024, 2730), (1152, 3072), (1536, 4096), (1792, 4778)])
def test_gated_hidden_widths_are_the_published_ones(width: int, hidden: int) -> None:
    with torch.device("meta"):
        model = DiT(replace(SMALL, width=width, heads=16, depth=1))
    assert model.get_submodule("blocks.0.mlp.w3").in_features == hidden


def test_no_table_of_rotations_without_rope() -> None:
    keys = DiT(replace(SMALL, rope=False)).state_dict().keys()
    assert not [key for key in keys if key.startswith("feat_rope")]


@pytest.mark.parametrize("swiglu", [True, False])
@pytest.mark.parametrize("rmsnorm", [True, False])
def test_initial_weights_come_from_the_generator_alone(swiglu: bool, rmsnorm: bool) -> None:
    options = replace(SMALL, swiglu=swiglu, rmsnorm=rmsnorm)
    models = []
    for garbage in (1.0, float("nan")):
        model = DiT(options)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(garbage)
        before = torch.get_rng_state()
        model.init_weights(generator(0, "init"))
        assert torch.equal(before, torch.get_rng_state())
        models.append(model)
    first, second = (dict((*model.named_parameters(), *model.named_buffers())) for model in models)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], first["blocks.1.attn.qkv.weight"])


def test_initial_weights_follow_the_recipe() -> None:
    model = DiT(replace(SMALL, width=256, depth=1))
    model.init_weights(generator(0, "init"))
    weights = model.state_dict()
    for key in ("blocks.0.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "final_layer.linear"):
        assert weights[f"{key}.weight"].count_nonzero() == 0
    for key in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table"):
        assert weights[f"{key}.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    patch = weights["x_embedder.proj.weight"]
    bound = (6 / (256 + patch[0].numel())) ** 0.5
    assert 0.95 * bound < patch.abs().max().item() <= bound
    assert all(tensor.count_nonzero() == 0 for key, tensor in weights.items() if key.endswith("bias"))
    x = torch.randn(2, 5, 6, 6, generator=generator(0, "x"))
    assert model(x, torch.rand(2), torch.tensor([0, 3])).count_nonzero() == 0


def test_every_parameter_learns() -> None:
    model = DiT(SMALL)
    model.init_weights(generator(0, "init"))
    draw = generator(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    x = torch.randn(4, 5, 6, 6, generator=draw)
    model(x, torch.rand(4, generator=draw), torch.arange(4)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.count_nonzero() > 0, key


@pytest.mark.parametrize("rmsnorm", [True, False])
@pytest.mark.filterwarnings("error")
def test_bfloat16_stays_near_float32(rmsnorm: bool) -> None:
    model = DiT(replace(SMALL, rmsnorm=rmsnorm))
    model.init_weights(generator(0, "init"))
    draw = generator(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
        x, t, labels = torch.randn(4, 5, 6, 6, generator=draw), torch.rand(4, generator=draw), torch.arange(4)
        exact = model(x, t, labels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, t, labels)
    assert (rough - exact).norm() < 0.02 * exact.norm()


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="patch=4"):
        replace(SMALL, patch=4)
    with pytest.raises(ValueError, match="width=36"):
        replace(SMALL, width=36)
