from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.stub import DATA, ONE, stub
from vtp.data.prepare import prepare_source


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training pictures in four shards, 8 for validation in two; row 7 of the training split is broken."""
    folder = tmp_path_factory.mktemp("data") / "prepare"
    prepare_source(folder, stub(changes={("train", 7): {"caption": " "}}), DATA, ONE)
    return folder
