"""Where pictures and captions come from. A source hands out rows and says nothing about their quality: see `vtp.data.contract`.

A further source is a file beside this one with a class of the form of `Source`, and two lines below.
"""

from __future__ import annotations

from vtp.config import DataParams
from vtp.data.sources.base import Row, Source
from vtp.data.sources.imagefolder import ImageFolder
from vtp.data.sources.parquet import Parquet
from vtp.data.sources.scenes import Scenes
from vtp.data.sources.webdataset import WebDataset

__all__ = ["Row", "Source", "open_source"]


def open_source(data: DataParams, seed: int) -> Source:
    """The source that `data.source` names. `seed` is used by rendered data only.

    Raises:
        ValueError: what `data` names is not there, or not of the form it should have.
    """
    if data.source == "scenes":
        return Scenes(data, seed)
    if data.source == "imagefolder":
        return ImageFolder(data)
    return WebDataset(data) if data.source == "webdataset" else Parquet(data)
