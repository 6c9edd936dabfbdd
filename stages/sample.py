"""Latents from noise, for every class equally often."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from vtp.config import ROOT, Params, SampleParams
from vtp.run import entry, open_run

log = logging.getLogger(__name__)


def main(params: Params) -> None:
    with open_run("sample", params, launchable=True) as run:
        import torch

        from vtp import dist, sampling
        from vtp.artifacts import save_tensors
        from vtp.data.latents import load_statistics
        from vtp.engine.inference import put_to_work, same_shape
        from vtp.engine.loop import autocast
        from vtp.engine.session import open_track, start
        from vtp.models.dit import DiT
        from vtp.seeding import generator

        device = start(params.run)
        p = params.sample
        model = put_to_work(DiT.from_pretrained(ROOT / "data" / "train_dit"), device, compiled=params.run.compile)
        mean, std = load_statistics(ROOT / "data" / "train_dit")
        options = model.options
        labels = torch.arange(p.samples) % options.num_classes
        shape = (options.latent_channels, options.grid, options.grid)
        ways = {"latents": p} | ({"unguided": replace(p, guidance_scale=1.0)} if p.unguided else {})
        made: dict[str, list[torch.Tensor]] = {name: [] for name in ways}
        evaluations = []

        def drawn(noise: torch.Tensor, chosen: torch.Tensor, how: SampleParams) -> torch.Tensor:
            latents, count = sampling.draw(model, noise, chosen, options.num_classes, how)
            evaluations.append(count)
            return latents.float()

        draw = {name: same_shape(partial(drawn, how=how), p.batch, compiled=params.run.compile) for name, how in ways.items()}
        with open_track(run, params.run) as track, torch.inference_mode(), autocast(device):
            mine = torch.arange(p.samples)[dist.rows(p.samples, "sample.samples")]
            bar = track.bar(-(-len(mine) // p.batch))
            for rows in mine.split(p.batch):
                # Each picture has noise of its own, whatever its batch and rank.
                noise = torch.stack([torch.randn(shape, generator=generator(params.seed, "sample", int(i))) for i in rows])
                for name, pieces in made.items():
                    pieces.append(draw[name](noise.to(device), labels[rows].to(device)).cpu() * std + mean)
                bar.advance(len(rows))
            bar.close()
        latents = {name: dist.gather(torch.cat(pieces).to(device)) for name, pieces in made.items()}
        log.info("%s with %d points: %.1f evaluations a picture", p.solver, p.points, sum(evaluations) / len(evaluations))
        with run.out({"evaluations": sum(evaluations) / len(evaluations)}) as folder:
            if dist.is_main():
                save_tensors(folder / "latents.safetensors", latents | {"labels": labels})


if __name__ == "__main__":
    entry(main)
