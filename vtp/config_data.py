"""The part of the schema of params.yaml that says what the data is: see `vtp.config`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vtp.typed import ConfigError, Count, Range, Rate


@dataclass(frozen=True)
class ParquetColumns:
    image: str
    caption: str | None
    label: str | None
    class_name: str | None


@dataclass(frozen=True)
class WebDatasetMembers:
    caption: str | None
    label: str | None


@dataclass(frozen=True)
class DataParams:
    source: Literal["scenes", "imagefolder", "webdataset", "parquet"]
    path: str | None
    validation_path: str | None
    class_names: str | None
    templates: tuple[str, ...]
    validation_labels: str | None
    train_samples: Count | None
    validation_samples: Count | None
    image_size: Annotated[int, Range(least=16)]
    store_size: Count | None
    context_length: Annotated[int, Range(least=4)]
    mode: Literal["copy", "index"]
    deep_check: bool
    duplicate_bits: Annotated[int, Range(least=0, most=16)] | None
    shard_samples: Count
    max_bad_fraction: Rate
    parquet: ParquetColumns
    webdataset: WebDatasetMembers


def check_data(data: DataParams) -> None:
    """What no single key can say.

    Raises:
        ConfigError: with one line that names the key and the remedy.
    """
    if data.source == "scenes" and (data.train_samples is None or data.validation_samples is None):
        raise ConfigError("data.train_samples and data.validation_samples must be numbers for data.source=scenes.")
    if data.source != "scenes" and data.path is None:
        raise ConfigError(f"data.path is null; data.source={data.source} needs the absolute path of its files.")
    for key in ("path", "validation_path", "class_names", "validation_labels"):
        value = getattr(data, key)
        known = value is None or (key == "class_names" and value == "imagenet") or Path(value).is_absolute()
        if not known and not (data.source == "webdataset" and "://" in value):
            raise ConfigError(f"data.{key}={value} must be absolute, or a copy of the checkout would not find it.")
    if data.source == "scenes" and (data.path or data.validation_path):
        raise ConfigError(
            f"data.path={data.path or data.validation_path} is not read by data.source=scenes; take data.source=imagefolder, "
            "parquet or webdataset, or set the path to null."
        )
    if data.source == "webdataset":
        if data.validation_path is None:
            raise ConfigError(
                "data.validation_path is null; data.source=webdataset needs tars for validation, a few of its own, say."
            )
        if data.train_samples is not None or data.validation_samples is not None:
            raise ConfigError(
                "data.train_samples and data.validation_samples must be null for webdataset; name fewer tars instead."
            )
    elif data.mode == "index":
        raise ConfigError(f"data.mode=index leaves tars where they are, and data.source={data.source} has none; use copy.")
    if data.store_size is not None and data.store_size < data.image_size:
        raise ConfigError(
            f"data.store_size={data.store_size} is below data.image_size={data.image_size}; pictures would be enlarged."
        )
    check_templates("data.templates", data.templates)


def check_templates(key: str, templates: tuple[str, ...]) -> None:
    """What makes a caption of a class name.

    Raises:
        ConfigError: one that would make the same caption of every class.
    """
    for template in templates:
        if template != "imagenet" and template.count("{}") != 1:
            raise ConfigError(f"{key}: {template!r} must hold {{}} once, where the class name goes; or be the word imagenet.")
        try:
            template.format("x")
        except (KeyError, IndexError, ValueError):
            raise ConfigError(f"{key}: {template!r} has another brace than those of {{}}; write {{{{ or }}}} for one.") from None
