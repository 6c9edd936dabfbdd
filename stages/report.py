"""Everything a run says about itself: one flat summary, the sheets, and a page that needs no network."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run

STAGES = {  # reports/<name>.json, and the stage that writes it
    "prepare": "prepare",
    "pretrain": "pretrain",
    "metric_network": "train_metric_network",
    "finetune_decoder": "finetune_decoder",
    "latents": "extract_latents",
    "dit": "train_dit",
    "tokenizer": "evaluate_tokenizer",
    "generation": "evaluate_generation",
}
TRAININGS = ("pretrain", "metric_network", "finetune_decoder", "dit")


def main(params: Params) -> None:
    with open_run("report", params) as run:
        import shutil

        import torch

        from vtp.artifacts import load_json
        from vtp.data.shards import Prepared, Scratch
        from vtp.reporting.curves import plot, read_csv
        from vtp.reporting.page import StageReport, write_page
        from vtp.reporting.pictures import captioned, save_png
        from vtp.reporting.statistics import plot_statistics
        from vtp.tracking import publish

        reports = ROOT / "reports"
        numbers = {name: load_json(reports / f"{name}.json") for name in STAGES}
        objective = params.pretrain.objective if params.tokenizer.source == "train" else "given"
        summary = {"objective": objective, **numbers["tokenizer"], **numbers["generation"]}
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        pictures = reports / "pictures"
        shown = torch.arange(64) * len(data.train) // 64
        save_png(
            pictures / "data.png", captioned(data.train.rows(shown)["images"], [data.train.caption(int(i)) for i in shown], 8)
        )
        plot_statistics(pictures / "statistics.png", load_json(ROOT / "data" / "prepare" / "statistics.json"))
        shutil.copyfile(ROOT / "data" / "evaluate_tokenizer" / "reconstructions.png", pictures / "reconstructions.png")
        shutil.copyfile(ROOT / "data" / "evaluate_generation" / "samples.png", pictures / "samples.png")
        curves = {}
        for name in TRAININGS:
            if rows := read_csv(reports / "curves" / f"{name}.csv"):  # a given tokenizer has no history
                curves[name] = pictures / f"curves_{name}.png"
                plot(curves[name], rows, f"{name}: {numbers[name]['step']} steps")
        run.metrics("summary", summary)
        write_page(
            reports / "index.html",
            title="Open VTP",
            summary=summary,
            stages=[StageReport(name, values, curves.get(name)) for name, values in numbers.items()],
            pictures=[pictures / f"{name}.png" for name in ("data", "statistics", "reconstructions", "samples")],
            parameters=run.parameters,
        )
        # Under the names that the stages use themselves, so that each figure is one column, from the cache or not.
        final = {STAGES[name]: {k: v for k, v in values.items() if v is not None} for name, values in numbers.items()}
        publish(run.main, run.variant, run.parameters, final, run_name=params.run.name, tags=params.run.tags)


if __name__ == "__main__":
    entry(main)
