"""What the tokenizer understands and how well it reconstructs, on held-out pictures."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("evaluate_tokenizer", params, launchable=True) as run:
        import torch

        from vtp import dist, evaluation
        from vtp.artifacts import MANIFEST, digest
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.loop import autocast
        from vtp.engine.session import open_track, start
        from vtp.models.frozen import perceptual
        from vtp.models.kinds import open_tokenizer
        from vtp.reporting.pictures import grid, labelled_rows, save_png

        device = start(params.run)
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        before = open_tokenizer(ROOT / "data" / "pretrain").to(device)
        after = open_tokenizer(ROOT / "data" / "finetune_decoder").to(device)
        describe = evaluation.describer(params.evaluate.features, ROOT / "data" / "train_metric_network", device)
        distance = perceptual(params.perceptual.net, params.perceptual.weights, params.seed).to(device)
        name = "lpips" if params.perceptual.weights == "published" else "lpips_random"
        with open_track(run, params.run) as track, torch.no_grad(), autocast(device):
            values = evaluation.understanding(before, data, params.evaluate, device, params.seed)
            for model, suffix in ((before, "_before_gan"), (after, "")):
                found = evaluation.reconstruction(model, data.validation, describe, distance, params.evaluate, device)
                found[name] = found.pop("distance")
                values |= {f"{key}{suffix}": value for key, value in found.items()}
            track.final({key: value for key, value in values.items() if value is not None})
            shown = data.validation.rows(torch.arange(min(16, len(data.validation))))["images"].to(device) / 255
            rebuilt = [model.decode(model.encode(shown)).clamp(0, 1) for model in (before, after)]
        rows = zip(("originals", "before the GAN", "after the GAN"), (shown, *rebuilt), strict=True)
        about = {"evaluated": digest(ROOT / "data" / "finetune_decoder" / MANIFEST)}
        if describe is not None and params.evaluate.features == "metric":
            about["metric_network"] = digest(ROOT / "data" / "train_metric_network" / "model.safetensors")
        with run.out(about) as folder:
            if dist.is_main():
                save_png(folder / "reconstructions.png", labelled_rows(list(rows)))
                save_png(folder / "strip.png", grid(torch.cat([shown[:8], rebuilt[1][:8]]), 8))
        run.metrics("tokenizer", values)


if __name__ == "__main__":
    entry(main)
