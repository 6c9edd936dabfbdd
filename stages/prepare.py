"""Source to shards: check every row, cut pictures to size, tokenize captions, count."""

from __future__ import annotations

import logging

from vtp.config import FEWEST_MEASURED, ROOT, Params
from vtp.run import entry, open_run

log = logging.getLogger(__name__)


def main(params: Params) -> None:
    with open_run("prepare", params) as run:
        from vtp.artifacts import read_manifest
        from vtp.data import source_pins
        from vtp.data.prepare import How, prepare

        source_pins.check(params.data, ROOT / "data" / "inputs")
        run.check()
        facts = prepare(ROOT / "data" / "prepare", params.data, params.seed, How(params.run.executor))
        counts = {
            f"{split}_{name}": facts[split][name] for split in ("train", "validation") for name in ("pictures", "broken_rows")
        }
        run.metrics("prepare", counts)
        about = read_manifest(ROOT / "data" / "prepare", verify=False)
        if not about["captioned"] and "clip" in params.pretrain.objective:
            log.warning("the data has no captions: pretrain.objective=%s will not start; use ssl+ae", params.pretrain.objective)
        if not about["labelled"] and params.evaluate.features == "metric":
            log.warning("the data has no labels: no probes, and no Frechet distances unless evaluate.features=inception")
        most = facts[params.evaluate.reference]["pictures"]
        measured = about["labelled"] or params.evaluate.features == "inception"
        for key, count in (("sample.samples", params.sample.samples), ("evaluate.reference", most)):
            if measured and count < FEWEST_MEASURED:
                log.warning("%s gives %d pictures, but distances are measured from %d on", key, count, FEWEST_MEASURED)
        if most < params.sample.samples:
            log.warning("evaluate.reference=%s has %d pictures: take as many for sample.samples", params.evaluate.reference, most)


if __name__ == "__main__":
    entry(main)
