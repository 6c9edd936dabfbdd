"""What tests of different files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clones import finish, sh
from vtp.tracking_database import locked

LONGEST = ("studies", "experiments", "given", "kills", "interruptions", "pipeline", "unlabelled")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: processes that share the files then end together."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def finished_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A fresh clone at each call, whose pipeline has run: that is done once for all processes of pytest, which take copies."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def copy() -> Path:
        with locked(base / "finished.lock"):
            if not (base / "finished" / "said").exists():
                shutil.rmtree(base / "finished", ignore_errors=True)
                finish(base / "finished")
        return shutil.copytree(base / "finished", tmp_path_factory.mktemp("copy") / "finished", symlinks=True) / "project"

    return copy


@pytest.fixture(scope="session")
def finished(finished_copy: Callable[[], Path]) -> Path:
    """A clone whose pipeline has run and whose lock is committed; what the run said lies beside it, in `said`."""
    return finished_copy()


@pytest.fixture
def project(finished: Path) -> Iterator[Path]:
    """The finished clone, which is itself again afterwards, without the runs that were added."""
    from tests.kills import kill_all

    before = set(finished.glob("runs/*/*"))
    yield finished
    kill_all(finished)
    sh(finished, "git", "checkout", "-q", ".")
    sh(finished, "git", "clean", "-fdq")
    sh(finished, "dvc", "checkout", "--force")
    for folder in set(finished.glob("runs/*/*")) - before:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
