"""Captions as ids of CLIP's byte-pair vocabulary (Radford et al., arXiv 2103.00020) by open_clip's tokenizer, and the words
that it has for ImageNet's classes."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 49408
START, END = 49406, 49407
MERGES_MD5 = "933b7abbbbde62c36f02f0e6ccde464f"


MOST_CHARACTERS = 4000
"""Of a caption that is stored; its ids fill a context of 77 long before."""
IMAGENET = "imagenet"
"""In place of a file of class names, or among templates: open_clip's for ImageNet."""


def bounded(text: str) -> str:
    """A caption as it is stored: as written, without space around it, cut at `MOST_CHARACTERS`, `?` for what is no character."""
    return text.strip()[:MOST_CHARACTERS].rstrip().encode("utf-8", "replace").decode()


def imagenet_names() -> list[str]:
    """Names of ImageNet's 1000 classes, in the order of their WordNet numbers (Radford et al., arXiv 2103.00020)."""
    return list(_module("zero_shot_metadata").IMAGENET_CLASSNAMES)


def expand_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Caption templates with `{}` for the class name; the word `imagenet` among them stands for CLIP's 80."""
    found: list[str] = []
    for template in templates:
        if template == IMAGENET:
            found += [fill("{}") for fill in _module("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES]
        else:
            found.append(template)
    return tuple(found)


def tokenize(texts: Sequence[str], context_length: int) -> Tensor:
    """Ids of each text, lower-cased: (B, L) int64, [START, ids, END], padded with 0; a long text is cut, its last id END."""
    known = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    if not known:
        return torch.zeros(0, context_length, dtype=torch.int64)
    rows = _tokenizer()(list(known), context_length=context_length)
    return rows[[known[text] for text in texts]]


@cache
def _module(name: str) -> Any:
    """One file of open_clip: importing the package would load timm and every model, seconds of it."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ValueError("open_clip is not installed; `pip install open_clip_torch` brings the caption tokenizer.")
    file = Path(package.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"vtp_open_clip_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _tokenizer() -> Any:
    module = _module("tokenizer")
    merges = Path(module.default_bpe())
    if hashlib.md5(merges.read_bytes(), usedforsecurity=False).hexdigest() != MERGES_MD5:
        raise ValueError(f"{merges} is not CLIP's list of merges (md5 {MERGES_MD5}); reinstall open_clip_torch.")
    tokenizer = module.SimpleTokenizer()
    if (tokenizer.vocab_size, tokenizer.sot_token_id, tokenizer.eot_token_id) != (VOCABULARY, START, END):
        raise ValueError(f"open_clip's tokenizer has {tokenizer.vocab_size} ids, not {VOCABULARY}; install open_clip_torch 3.")
    return tokenizer
