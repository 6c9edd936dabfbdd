"""Tokenizers from outside: used as they are, or trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vtp.models.base import Tokenizer
from vtp.models.convolutional import ConvolutionalTokenizer, differences
from vtp.models.kinds import open_tokenizer
from vtp.models.options import mismatches
from vtp.models.tokenizer import VisualTokenizer


def as_it_is(folder: Path, image_size: int) -> Tokenizer:
    """The tokenizer in `folder`, for a pipeline that trains at `image_size` pixels.

    Raises:
        ValueError: it cannot paint, or pictures of that size do not divide into its patches.
    """
    tokenizer = open_tokenizer(folder)
    if isinstance(tokenizer, VisualTokenizer) and tokenizer.options.decoder is None:
        raise ValueError(f"{folder} has no decoder (train_reconstruction is false); what comes after it needs one.")
    patch = tokenizer.downsample
    if image_size % patch:
        raise ValueError(f"data.image_size={image_size} is not a multiple of {patch}, the patch of {folder}.")
    return tokenizer


def begin_from(tokenizer: Tokenizer, folder: Path, *, trunk_only: bool) -> None:
    """Give a new tokenizer the weights in `folder`, or those of its trunk only; see `go_on_from` and `take_trunk`.

    Raises:
        ValueError: naming everything that differs.
    """
    if trunk_only and isinstance(tokenizer, VisualTokenizer):
        take_trunk(tokenizer, folder)
    else:
        go_on_from(tokenizer, folder)


def take_trunk(tokenizer: VisualTokenizer, folder: Path) -> None:
    """Give a new tokenizer the encoder in `folder`, all of it but the bottleneck, whose number of channels is free.

    Raises:
        ValueError: naming everything that differs.
    """
    given = VisualTokenizer.from_pretrained(folder)
    wanted = replace(
        tokenizer.options, encoder=replace(tokenizer.options.encoder, latent_channels=given.options.encoder.latent_channels)
    )
    wrong = [phrase for phrase in mismatches(wanted, given.options) if phrase.startswith("encoder.")]
    if wrong:
        raise ValueError(
            f"pretrain.init_from={folder} has another trunk than the parameters ask for: {', '.join(wrong)}; "
            "set model.sizes and tokenizer to its values."
        )
    trunk = {name: tensor for name, tensor in given.encoder.state_dict().items() if not name.startswith("feature_bottleneck")}
    tokenizer.encoder.load_state_dict(trunk, strict=False)


def go_on_from(tokenizer: Tokenizer, folder: Path) -> None:
    """Give a new tokenizer the weights in `folder`, whose form must be the same: captions of that length, that patch and so on.

    Raises:
        ValueError: naming everything that differs.
    """
    given = open_tokenizer(folder)
    if isinstance(tokenizer, VisualTokenizer) and isinstance(given, VisualTokenizer):
        wrong = mismatches(tokenizer.options, given.options)
        keys = "model.sizes, tokenizer, pretrain.objective and data.context_length (text.context_length)"
    elif isinstance(tokenizer, ConvolutionalTokenizer) and isinstance(given, ConvolutionalTokenizer):
        wrong, keys = differences(tokenizer.config, given.config), "tokenizer"
    else:
        wrong, keys = [f"{type(given).__name__}, not {type(tokenizer).__name__}"], "tokenizer.network and pretrain.objective"
    if wrong:
        raise ValueError(
            f"pretrain.init_from={folder} has another form than the parameters ask for: {', '.join(wrong)}; "
            f"set {keys} to its values."
        )
    tokenizer.load_state_dict(given.state_dict())
