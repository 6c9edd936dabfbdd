"""Which kind of tokenizer lies in a folder: this project's transformers in the published layout, or diffusers' AutoencoderKL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtp.artifacts import load_json
from vtp.models import convolutional, pretrained
from vtp.models.base import Tokenizer
from vtp.models.convolutional import ConvolutionalTokenizer
from vtp.models.hub import fetch
from vtp.models.tokenizer import VisualTokenizer

FILES = (*pretrained.FILES, convolutional.WEIGHTS)
"""What a tokenizer of either kind is read from."""


def holds_tokenizer(config: Any) -> bool:
    """Whether a config.json is a tokenizer's; its reader says what is wrong with it."""
    return isinstance(config, dict) and ("model_type" in config or "_class_name" in config)


def open_tokenizer(folder: str | Path, *, hub: bool = False) -> Tokenizer:
    """Read a tokenizer of either kind, in eval mode and frozen, on the CPU.

    Args:
        folder: a path; or with `hub` a name on the Hugging Face Hub, `org/name` or `org/name@revision`.

    Raises:
        ValueError: what is wrong with the folder, by name.
    """
    path = fetch(str(folder)) if hub else Path(folder)
    config = path / pretrained.CONFIG
    found = load_json(config) if config.is_file() else None
    if isinstance(found, dict) and "_class_name" in found:
        return ConvolutionalTokenizer.from_pretrained(path)
    return VisualTokenizer.from_pretrained(path)
