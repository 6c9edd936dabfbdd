"""A small classifier whose features measure Frechet distances where Inception's published weights are not at hand."""

from __future__ import annotations

import logging
from dataclasses import replace

from vtp.config import ROOT, Params
from vtp.run import entry, open_run

log = logging.getLogger(__name__)


def main(params: Params) -> None:
    with open_run("train_metric_network", params) as run:
        from vtp import dist
        from vtp.data.batches import Batches
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.session import start, train
        from vtp.models.metric_network import MetricNetwork
        from vtp.reporting.curves import write_csv
        from vtp.tasks.metric import TrainMetricNetwork

        # A ruler that is made anew, for more runs of a study, say, should be the same ruler.
        device = start(replace(params.run, deterministic=True))
        options = params.evaluate.metric_network
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        if not data.labelled:
            log.info("the data has no labels to train a metric network on; evaluate.features=inception needs none")
            with run.out():
                write_csv(ROOT / "reports" / "curves" / "metric_network.csv", [])
            run.metrics("metric_network", {"step": 0, "loss": None})
            return
        network = MetricNetwork(options.model, num_classes=data.num_classes, image_size=params.data.image_size, seed=params.seed)
        task = TrainMetricNetwork(options, network, image_size=params.data.image_size)
        batches = Batches(data.train, batch=options.batch, seed=params.seed, workers=params.run.workers)
        end = train(task, batches, run, params.run, seed=params.seed, device=device)
        with run.out() as folder:
            if dist.is_main():
                network.save_pretrained(folder)
                write_csv(ROOT / "reports" / "curves" / "metric_network.csv", end.history)
        run.metrics("metric_network", end.history[-1])


if __name__ == "__main__":
    entry(main)
