"""What tests of different files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clones import clone, sh


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose pipeline has run and whose lock is committed. Whoever uses it leaves it as it was."""
    folder = clone(tmp_path_factory.mktemp("finished") / "project")
    sh(folder, "dvc", "repro")
    sh(folder, "git", "add", "-f", "dvc.lock")
    sh(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "lock")
    return folder
