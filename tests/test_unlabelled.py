"""The pipeline on a flat folder of photographs: no classes, no captions; all that needs neither is made and measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clones import TINY, change, clone, sh
from tests.data.stub import pixels, png


@pytest.mark.slow
def test_photographs_without_labels_and_captions_end_in_samples_and_a_report(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(72):
        (photographs / f"{i}.jpg").write_bytes(png(pixels(True, 20, i, height=64, width=70), "JPEG"))
    project = clone(tmp_path / "project")
    data = ("data.source=imagefolder", f"data.path={photographs}", "data.train_samples=56", "data.validation_samples=16")
    few = ("sample.samples=40", "latents.batch=16", "evaluate.batch=16", "evaluate.reference=train")
    change(project, *TINY, *data, *few)
    sh(project, sys.executable, "-m", "vtp", "pin")
    assert "clip+ssl+ae" in sh(project, "dvc", "repro", ok=False)  # captions are missed before a step is taken
    change(project, *TINY, *data, *few, "pretrain.objective=ssl+ae")
    said = sh(project, "dvc", "repro")
    assert "no labels" in said
    summary = json.loads((project / "reports" / "summary.json").read_text())
    for name in ("zero_shot_top1", "linear_probe_top1", "rfd", "gfd", "gfd_gaussian", "precision", "kid"):
        assert summary[name] is None, name
    assert summary["psnr"] > 0
    assert summary["samples"] == 40
    for name in ("data", "reconstructions", "samples"):
        assert (project / "reports" / "pictures" / f"{name}.png").is_file()
    for command in ("metrics", "plots"):
        sh(project, "dvc", command, "show")
