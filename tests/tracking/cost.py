"""What tracking costs, in processor time, over a run that tracks what the demo does at the demo's pace.

`python -m tests.tracking.cost [SECONDS]`. The time on the wall would say more about the machine's other work than about tracking;
counted are the time inside the calls of `Track` and the processor time of every uploader from its first to its last instruction,
the creation of the database included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vtp import dist
from vtp.config import load
from vtp.provenance import what_parameters
from vtp.tracking import Track

SHARE = {  # of the demo's time, by stage
    "pretrain": 0.4,
    "train_metric_network": 0.05,
    "finetune_decoder": 0.1,
    "extract_latents": 0.03,
    "train_dit": 0.25,
    "sample": 0.05,
    "evaluate_tokenizer": 0.08,
    "evaluate_generation": 0.04,
}
CURVES = 15  # names of scalars in a row


def cost(main: Path, seconds: float) -> tuple[float, float]:
    """Seconds inside the calls of a run, and seconds of processor of the uploaders it started."""
    params = load()
    assert dist.is_main()  # a stage has loaded torch before it tracks, so that is no cost of tracking
    steps = {
        "pretrain": params.pretrain.steps,
        "train_metric_network": params.evaluate.metric_network.steps,
        "finetune_decoder": params.finetune_decoder.steps,
        "train_dit": params.dit.steps,
    }
    sheet = np.random.default_rng(0).integers(0, 255, (2 * 64, 8 * 64, 3)).astype(np.uint8)
    uploaders = []
    inside = 0.0
    for stage, share in SHARE.items():
        rows = steps.get(stage, 0) // params.run.log_every
        start = time.thread_time()
        track = Track.open(stage, "cost", main=main, variant="cost", parameters=what_parameters(params))
        inside += time.thread_time() - start
        for row in range(rows):
            time.sleep(share * seconds / rows)
            start = time.thread_time()
            track.scalars(row, {f"curve {i}": row / (i + 1) for i in range(CURVES)})
            if row % (params.run.picture_every // params.run.log_every) == 0:
                track.picture("sheet", sheet, row)
            inside += time.thread_time() - start
        if not rows:
            time.sleep(share * seconds)
        start = time.thread_time()
        track.final({f"figure {i}": float(i) for i in range(CURVES)})
        uploader = track._uploader
        track.close()
        inside += time.thread_time() - start
        uploaders += [process for process in {uploader, track._uploader} if process is not None]
    used = [os.wait4(process.pid, 0)[2] for process in uploaders]
    return inside, sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.tracking.cost")
    parser.add_argument("seconds", nargs="?", type=float, default=250.0, help="that the demo takes")
    chosen = parser.parse_args()
    os.environ["VTP_TRACKING"] = "on"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as base:
        calls, apart = cost(Path(base), chosen.seconds)
        uploaded = (Path(base) / "runs" / "spool" / "upload.log").read_text().count("is uploaded to")
    assert uploaded == len(SHARE), "not everything was uploaded"
    cores = os.cpu_count() or 1
    sys.stdout.write(
        f"calls {calls:.2f} s, uploaders {apart:.2f} s of processor: {100 * calls / chosen.seconds:.2f} % of the run's own time, "
        f"{100 * (calls + apart) / chosen.seconds / cores:.2f} % of what {cores} cores can do in {chosen.seconds:.0f} s\n"
    )
