"""Open VTP: visual tokenizers pre-trained to understand, and the pipeline that trains, refines and measures them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtp.models.tokenizer import VisualTokenizer as VisualTokenizer

__all__ = ["VisualTokenizer"]


def __getattr__(name: str) -> object:
    # Lazy: stages import `vtp` long before they need torch.
    if name == "VisualTokenizer":
        from vtp.models.tokenizer import VisualTokenizer

        return VisualTokenizer
    raise AttributeError(f"module 'vtp' has no attribute {name!r}")
