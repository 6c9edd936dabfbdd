"""How close decoded samples come to real pictures, and what they look like."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("evaluate_generation", params, launchable=True) as run:
        import torch

        from vtp import dist, evaluation
        from vtp.artifacts import load_tensors
        from vtp.data.latents import load_statistics
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.inference import put_to_work, same_shape
        from vtp.engine.loop import autocast
        from vtp.engine.session import open_track, start
        from vtp.models.kinds import open_tokenizer
        from vtp.reporting.pictures import captioned, grid, save_png
        from vtp.seeding import generator

        device = start(params.run)
        p = params.evaluate
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        tokenizer = open_tokenizer(ROOT / "data" / "finetune_decoder")
        put_to_work(tokenizer, device, compiled=params.run.compile)
        decode = same_shape(tokenizer.decode, p.batch, compiled=params.run.compile)
        describe = evaluation.describer(p.features, ROOT / "data" / "train_metric_network", device)
        mean, std = load_statistics(ROOT / "data" / "extract_latents")
        made = load_tensors(ROOT / "data" / "sample" / "latents.safetensors")
        count = len(made["labels"])
        split = data.train if p.reference == "train" else data.validation
        if describe is not None and len(split) < count:
            raise ValueError(
                f"sample.samples={count}, but evaluate.reference={p.reference} has {len(split)} pictures; take as many of both."
            )
        noise = torch.randn(made["latents"].shape, generator=generator(params.seed, "gaussian latents"))
        with open_track(run, params.run) as track, torch.no_grad(), autocast(device):
            samples = evaluation.decoded(decode, made["latents"], p.batch, device)
            gaussian = evaluation.decoded(decode, noise * std + mean, p.batch, device)
            reference = split.rows(torch.arange(count) * len(split) // count)["images"]
            unguided = evaluation.decoded(decode, made["unguided"], p.batch, device) if "unguided" in made else None
            values = evaluation.generation(samples, gaussian, reference, describe, p, device, unguided=unguided)
            track.final({key: value for key, value in values.items() if value is not None})
        with run.out() as folder:
            if dist.is_main():
                # Spread over the classes, every other row one further, so that no regular pattern of labels is missed.
                row = torch.arange(32)
                shown = (row * data.num_classes // 32 + row // 4 % 2) % min(count, data.num_classes)
                names = [data.classes[int(label)].name for label in made["labels"][shown]]
                save_png(folder / "samples.png", captioned(samples[shown], names, 8))
                save_png(folder / "strip.png", grid(samples[shown[::4]], 8))
        run.metrics("generation", values)


if __name__ == "__main__":
    entry(main)
