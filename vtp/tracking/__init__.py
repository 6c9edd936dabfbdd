"""Progress, curves and pictures of a run, kept in a spool and brought to MLflow by a process of its own.

What a training needs is here; `python -m vtp.tracking` does the rest. The modules import downwards: `spool` (the files between
a training and MLflow), `bar` and `track` (what a training writes), `database` and `runs` (what MLflow holds), `upload` (from the
one to the other), `studies`, `ui`.
"""

from __future__ import annotations

from vtp.tracking.bar import Bar
from vtp.tracking.track import Status, Track, flatten, publish

__all__ = ["Bar", "Status", "Track", "flatten", "publish"]
