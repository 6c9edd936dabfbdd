"""What tests of different files share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import clone, sh


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose pipeline has run and whose lock is committed; what the run said lies beside it, in `said`."""
    folder = clone(tmp_path_factory.mktemp("finished") / "project")
    (folder.parent / "said").write_text(sh(folder, "dvc", "repro"))
    sh(folder, "git", "add", "-f", "dvc.lock")
    sh(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "lock")
    return folder


@pytest.fixture
def project(finished: Path) -> Iterator[Path]:
    """The finished clone, which is itself again afterwards, without the runs that were added."""
    from tests.kills import processes

    before = set(finished.glob("runs/*/*"))
    yield finished
    for process in processes(finished):
        process.kill()
    sh(finished, "git", "checkout", "-q", ".")
    sh(finished, "git", "clean", "-fdq")
    sh(finished, "dvc", "checkout", "--force")
    for folder in set(finished.glob("runs/*/*")) - before:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
