"""What tests of different files share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clones import finish, sh
from vtp.tracking.database import locked

LONGEST = ("studies", "experiments", "given", "kills", "interruptions", "pipeline", "unlabelled")


def pytest_configure() -> None:
    """What is started in the background, as a test run may be, ignores Ctrl-C, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: processes that share the files then end together."""
    places = {Path(__file__).with_name(f"test_{name}.py"): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


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
def settled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What gets its name while all of its content is on the disk; what does not is an error."""
    synced: set[int] = set()
    named: list[Path] = []
    fsync, replace = os.fsync, os.replace

    def noting(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checking(source: Path, target: Path) -> None:
        files = [path for path in (Path(source), *Path(source).rglob("*")) if path.is_file()]
        found = {path.stat().st_ino: path.name for path in files}
        missing = [name for number, name in found.items() if number not in synced]
        assert Path(target).suffix == ".safetensors" or not missing, f"{target}: {missing} may be empty after a power cut"
        named.append(Path(target))
        if Path(target).suffix != ".safetensors":  # a part of a folder, which is checked as a whole
            synced.difference_update(found)  # a file that takes the place of a deleted one may get its number
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "replace", checking)
    return named


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
