"""Records are measured again by the commands that they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import again, measure
from tests.waiting import PATIENCE
from vtp.config import ROOT


def test_a_command_that_wrote_several_records_runs_once():
    todo = again.commands(measure.RESULTS / "h200", [])
    assert todo["W3-b"][:4] == ["-m", "benchmarks.dit", "--work", "W3-b"]
    assert len([name for name in todo if name.startswith("data-")]) == 1
    assert "solvers" not in todo  # which needs the outs of a pipeline
    with pytest.raises(SystemExit, match="no record of W9; it has 16k, "):
        again.commands(measure.RESULTS / "h200", ["W9"])


def test_the_new_record_holds_the_same_command_and_a_failure_does_not_stop_the_others(tmp_path: Path):
    """Whole commands in processes of their own."""
    command = "python -m benchmarks.tokenizer --work W4-encode --tiny"
    code = (
        "import sys; from pathlib import Path; from benchmarks import again\nagain.RESULTS = Path(sys.argv.pop(1)); again.main()"
    )
    before = tmp_path / "before" / "cpu"
    before.mkdir(parents=True)
    record = {"milliseconds": 10.0, "images_per_second": 1.0}
    (before / "A.json").write_text(json.dumps(record | {"command": "python -m benchmarks.tokenizer --work none"}))
    (before / "W4-encode.json").write_text(json.dumps(record | {"command": command}))
    out = tmp_path / "after"
    call = [sys.executable, "-c", code, before.parent, "--out", out]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert said.returncode == 1
    assert "1 of 2 gave no record: A." in said.stderr
    assert "invalid choice: 'none'" in (out / "logs" / "A.log").read_text()
    found = json.loads((out / "cpu" / "W4-encode.json").read_text())
    assert found["command"] == command
    assert f"W4-encode: 10.0 ms, now {found['milliseconds']} ms" in said.stderr
