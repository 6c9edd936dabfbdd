"""Tokenizers on the Hugging Face Hub, and its cache on disk. Nothing is fetched unless a caller asks for it by name."""

from __future__ import annotations

from pathlib import Path

FILES = ("config.json", "model.safetensors", "vtp_extra.safetensors", "diffusion_pytorch_model.safetensors", "README.md")
"""All that is ever fetched; no code, no pickle."""


def fetch(name: str) -> Path:
    """A tokenizer's folder in the Hub's local cache, downloaded where it is not there yet.

    Args:
        name: `org/name`, or `org/name@revision` (a branch, a tag, a commit).

    Raises:
        ValueError: no such name or revision, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{name} could not be fetched from the Hugging Face Hub ({why}); "
            "check the name (org/name or org/name@revision) and the network, or download the folder and give its path."
        ) from None


def cached_weights(repository: str, remedy: str) -> Path:
    """The weights of a model of the Hub that are on disk already.

    Raises:
        FileNotFoundError: they are not; the message says how to bring them, and ends with `remedy`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    raise FileNotFoundError(
        f"model.safetensors of {repository} is not in {constants.HF_HUB_CACHE}; bring it there with "
        f"`hf download {repository} model.safetensors`, or {remedy}"
    )
