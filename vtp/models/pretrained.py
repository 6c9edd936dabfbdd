"""A tokenizer's folder: read without copying and checked to the last name; written aside and renamed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtp import artifacts
from vtp.models.blocks import Rope
from vtp.models.card import Card, render
from vtp.models.official import from_config, from_official, to_config, to_official
from vtp.models.options import TokenizerOptions, misread

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, EXTRA, CARD = "config.json", "model.safetensors", "vtp_extra.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, EXTRA)
"""What a tokenizer is read from."""
LAST = "pixel_decoder.proj_out.bias"
OURS = (*FILES, CARD, artifacts.MANIFEST)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_options(folder: Path) -> TokenizerOptions:
    """The options of the tokenizer in `folder`.

    Raises:
        ValueError: no such folder, no configuration in it, or one that cannot be built.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; give the path of a tokenizer's folder, or say hub=True (--hub) to fetch org/name "
            "from the Hugging Face Hub."
        )
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder / CONFIG} is missing, so this is no tokenizer's folder.")
    try:
        return from_config(artifacts.load_json(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None


def fill(model: nn.Module, folder: Path) -> None:
    """Give a model that was made on the meta device the tensors of `folder`, mapped from disk, not copied.

    Checksums are compared where a manifest lies beside the files. What no file holds (periods of RoPE) is computed.

    Raises:
        ValueError: a file that is missing, cut or changed; tensors missing, unknown or of another shape, all of them.
    """
    artifacts.verify_listed(folder, FILES)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        beside = f" {', '.join(pickles)} beside it is a pickle, which can run code, and is not opened;" if pickles else ""
        raise ValueError(f"{folder / WEIGHTS} is missing;{beside} save the weights as one safetensors file of that name.")
    tensors = _tensors(folder / WEIGHTS)
    if (folder / EXTRA).is_file():
        tensors |= _tensors(folder / EXTRA)
    expected = {to_official(name): tensor for name, tensor in model.state_dict().items()}
    _compare(folder, expected, tensors)
    model.load_state_dict({from_official(name): tensor for name, tensor in tensors.items()}, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, Rope) and module.periods.is_meta:
            module.reset()


def reset_rope(model: nn.Module) -> None:
    """Make the periods of RoPE anew, in the dtype that it is applied in."""
    for module in model.modules():
        if isinstance(module, Rope):
            module.reset(module.dtype)


def _tensors(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as opened:
        start = opened.read(2)
    if start in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise ValueError(f"{file} is a pickle under another name, which can run code, and is not opened; save it as safetensors.")
    tensors = artifacts.load_tensors(file)
    stored = {tensor.dtype for name, tensor in tensors.items() if not _computed(name)}
    whole = sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point())
    if whole:
        raise ValueError(f"{file} holds tensors that are no floats: {', '.join(whole)}.")
    if stored - {torch.float32}:
        log.info("%s is stored as %s; it is computed with in float32", file, ", ".join(sorted(map(str, stored))))
    return {name: tensor if _computed(name) else tensor.float() for name, tensor in tensors.items()}


def _computed(name: str) -> bool:
    return name.endswith("rope_embed.periods")


def _compare(folder: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    missing = sorted(name for name in expected.keys() - tensors.keys() if not _computed(name))
    unknown = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the configuration asks for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    wrong = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"not known: {', '.join(unknown)}"] * bool(unknown) + shapes
    last = [len(some[LAST]) for some in (tensors, expected) if LAST in some]
    if len(last) == 2 and last[0] == 3 * 16**2 != last[1]:
        wrong.append("the published decoder paints 16 pixels a side whatever vision_patch_size is: pictures of another size")
    if wrong:
        raise ValueError(f"{folder}: the tensors are not those of {CONFIG}; {'; '.join(wrong)}.")


def write(folder: Path, options: TokenizerOptions, model: nn.Module, card: Card) -> None:
    """Write config.json, model.safetensors with published names only, vtp_extra.safetensors for the rest, and README.md.

    The whole folder appears at once; one that is there already is replaced if it holds a tokenizer or nothing.

    Raises:
        ValueError: the folder holds other things.
    """
    check_free(folder, OURS)
    if odd := misread(options):
        log.warning("the published inference code would decode this tokenizer wrongly: %s", "; ".join(odd))
    tensors: dict[str, Any] = {to_official(name): tensor for name, tensor in model.state_dict().items()}
    extra = {name: tensors.pop(name) for name in list(tensors) if "storage_tokens" in name}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    with artifacts.folder_aside(folder) as aside:
        artifacts.save_json(aside / CONFIG, to_config(options))
        artifacts.save_tensors(aside / WEIGHTS, tensors, ("format", "pt"))
        if extra:
            artifacts.save_tensors(aside / EXTRA, extra, ("format", "pt"))
        (aside / CARD).write_text(render(card, options, counts), encoding="utf-8")


def check_free(folder: Path, ours: Sequence[str]) -> None:
    """Check that a folder may be replaced: it is not there, or holds only what a tokenizer's files are called.

    Raises:
        ValueError: it holds other things.
    """
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder} holds {', '.join(others[:3])}, which would be lost; give a folder of its own.")
