"""What stages made, kept for every variant that shares it; variants at work at the same time wait for each other here."""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from vtp.artifacts import folder_aside, remove

BULKY = ("extract_latents", "sample")
"""Stages whose outs are large and quickly made again: only the newest are kept, and those in use."""


class Shelf:
    """Outs by stage and fingerprint. A place, `<folder>/<stage>/<fingerprint>/`, is there when all of its outs are.

    One process works with a shelf; its threads may all do so at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mutex = threading.Lock()
        self._taken: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._claims: defaultdict[str, set[Path]] = defaultdict(set)

    def place(self, stage: str, key: str) -> Path:
        """Where the outs of a stage under a fingerprint are, or will be."""
        return self.folder / stage / key

    def take(self, place: Path, user: str, *, wait: bool) -> bool:
        """Look whether a place is there, and make it if not, before anybody else may; False: somebody is at it.

        What is there, or will be, stays until `user` lets go.

        Args:
            wait: for whoever is at it; then the answer is True.
        """
        with self._mutex:
            self._claims[user].add(place)
            lock = self._taken[place]
        return lock.acquire(blocking=wait)

    def give(self, place: Path) -> None:
        """Let others look at a place that was taken."""
        self._taken[place].release()

    def let_go(self, user: str) -> None:
        """The user needs nothing any more."""
        with self._mutex:
            self._claims.pop(user, None)

    def put(self, place: Path, source: Path, outs: Sequence[Path]) -> None:
        """Move outs, relative to `source`, to their place; of a bulky stage whatever nobody uses goes."""
        with self._mutex:
            if place.parent.name in BULKY:
                used = set().union(*self._claims.values())
                for other in set(place.parent.glob("*")) - used:
                    remove(other)
            with folder_aside(place) as folder:
                for path in outs:
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(source / path, folder / path)
