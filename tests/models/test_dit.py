from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vtp.artifacts import write_manifest
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.seeding import generator

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
    with pytest.raises(ValueError, match="width=36 does not divide by 8"):
        replace(SMALL, width=36)
    # Without rotation only the table of positions cuts the width, in quarters.
    assert replace(SMALL, width=36, rope=False).width == 36
    for heads, step in ((2, 4), (5, 20)):
        with pytest.raises(ValueError, match=f"width=34 does not divide by {step}"):
            replace(SMALL, width=34, heads=heads, rope=False)


def edited(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "vtp"}, "model_type='vtp'"),
        ({"heads": "absent"}, "look at heads"),
        ({"surprise": 1}, "look at surprise"),
        ({"patch": 4}, "patch=4 does not divide grid=6"),
        ({"depth": 3}, r"missing: blocks\.2\..*; not known: none"),
        ({"depth": 1}, r"not known: blocks\.1\..* and \d+ more"),
        ({"mlp_ratio": 3.0}, r"blocks\.0\.mlp\.w12\.bias is \(170,\), expected \(128,\)"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, object], match: str) -> None:
    DiT(SMALL).save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=match) as caught:
        DiT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_table_is_named(tmp_path: Path) -> None:
    DiT(SMALL).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds no table"):
        DiT.from_pretrained(tmp_path)


def test_missing_cut_and_changed_files_are_named(tmp_path: Path) -> None:
    model = DiT(SMALL)
    model.init_weights(generator(0, "init"))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        DiT.from_pretrained(tmp_path)
    file.write_bytes(whole)
    write_manifest(tmp_path, {})
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file its manifest lists"):
        DiT.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        DiT.from_pretrained(tmp_path)


def test_mapped_weights_can_be_trained_on_and_leave_the_file_alone(tmp_path: Path) -> None:
    DiT(SMALL).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = DiT.from_pretrained(tmp_path).requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save_pretrained(tmp_path)
    assert torch.equal(DiT.from_pretrained(tmp_path).final_layer.linear.bias, model.final_layer.linear.bias)
