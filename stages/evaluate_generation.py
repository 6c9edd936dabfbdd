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
        noise = torch.randn(made["latents"].shape, generator=generator(params.seed, "gaussian latents"))
        latents = {"samples": made["latents"], "gaussian": noise * std + mean}
        latents |= {name: made[name] for name in ("unguided",) if name in made}

        def paint(rows: torch.Tensor) -> torch.Tensor:
            return evaluation.to_uint8(decode(rows).float())

        # Spread over the classes, every other row one further, so that no regular pattern of labels is missed.
        row = torch.arange(32)
        shown = (row * data.num_classes // 32 + row // 4 % 2) % min(count, data.num_classes)
        with open_track(run, params.run) as track, torch.no_grad(), autocast(device):
            values = evaluation.generation(latents, paint, split, describe, p, device)
            track.final({key: value for key, value in values.items() if value is not None})
            samples = paint(made["latents"][shown].to(device)).cpu()
        with run.out() as folder:
            if dist.is_main():
                names = [data.classes[int(label)].name for label in made["labels"][shown]]
                save_png(folder / "samples.png", captioned(samples, names, 8))
                save_png(folder / "strip.png", grid(samples[::4], 8))
        run.metrics("generation", values)


if __name__ == "__main__":
    entry(main)
