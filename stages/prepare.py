"""Source to shards: check every row, cut pictures to size, tokenize captions, count."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("prepare", params) as run:
        from vtp.data import source_pins
        from vtp.data.prepare import How, prepare

        source_pins.check(params.data, ROOT / "data" / "inputs")
        run.check()
        facts = prepare(ROOT / "data" / "prepare", params.data, params.seed, How(params.run.executor))
        counts = {
            f"{split}_{name}": facts[split][name] for split in ("train", "validation") for name in ("pictures", "broken_rows")
        }
        run.metrics("prepare", counts)


if __name__ == "__main__":
    entry(main)
