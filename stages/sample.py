"""Latents from noise, for every class equally often."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("sample", params, launchable=True) as run:
        import torch

        from vtp import dist, sampling
        from vtp.artifacts import save_tensors
        from vtp.data.latents import load_statistics
        from vtp.engine.loop import autocast
        from vtp.engine.session import open_track, start
        from vtp.models.dit import DiT
        from vtp.seeding import generator

        device = start(params.run)
        p = params.sample
        model = DiT.from_pretrained(ROOT / "data" / "train_dit").to(device)
        mean, std = load_statistics(ROOT / "data" / "train_dit")
        options = model.options
        grid = sampling.time_grid(p.points, p.shift)
        labels = torch.arange(p.samples) % options.num_classes
        shape = (options.latent_channels, options.grid, options.grid)
        made = []
        with open_track(run, params.run) as track, torch.inference_mode(), autocast(device):
            mine = torch.arange(p.samples)[dist.rows(p.samples, "sample.samples")]
            bar = track.bar(-(-len(mine) // p.batch))
            for rows in mine.split(p.batch):
                # Each picture has noise of its own, whatever its batch and rank.
                noise = torch.stack([torch.randn(shape, generator=generator(params.seed, "sample", int(i))) for i in rows])
                chosen = labels[rows].to(device)
                velocity = sampling.guided(
                    model,
                    chosen,
                    options.num_classes,
                    scale=p.guidance_scale,
                    interval=p.guidance_interval,
                    channels=sampling.GUIDED_CHANNELS[p.guidance_channels],
                )
                made.append(sampling.integrate(velocity, noise.to(device), grid, p.solver).float().cpu() * std + mean)
                bar.advance(len(rows))
            bar.close()
        latents = dist.gather(torch.cat(made).to(device))
        with run.out() as folder:
            if dist.is_main():
                save_tensors(folder / "latents.safetensors", {"latents": latents, "labels": labels})


if __name__ == "__main__":
    entry(main)
