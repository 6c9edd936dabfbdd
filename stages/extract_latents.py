"""Encode the training pictures, and their mirror images, once; count the channels' statistics.

Latents are stored in float32. On a GPU the matrix products that make them are bfloat16 (the reference extracts in float32 with
TF32); on a CPU everything is float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vtp.config import ROOT, Params
from vtp.run import Run, entry, open_run

if TYPE_CHECKING:  # stages look at parameters before they need torch
    import torch

    from vtp.data.shards import Split
    from vtp.models.base import Tokenizer


def main(params: Params) -> None:
    with open_run("extract_latents", params, launchable=True) as run:
        from vtp import dist
        from vtp.data import pins
        from vtp.data.latents import LatentStore, copy_latents
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.session import start
        from vtp.models.kinds import open_tokenizer

        device, given = start(params.run), params.given_latents
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        tokenizer = open_tokenizer(ROOT / "data" / "pretrain")
        with run.out({"num_classes": data.num_classes, "given": given is not None}) as folder:
            if given is None:
                extract(params, run, tokenizer, data.train, folder, device)
            elif dist.is_main():
                pins.check_given("latents", given, None, ROOT / "data" / "inputs")
                channels = tokenizer.latent_channels
                copy_latents(given, folder, channels=channels, num_classes=data.num_classes)
        store = LatentStore.open(ROOT / "data" / "extract_latents")
        channels, h, w = store.shape
        run.metrics(
            "latents",
            {
                "latents": len(store),
                "channels": channels,
                "height": h,
                "width": w,
                "mean_abs": round(float(store.mean.abs().mean()), 6),
                "mean_std": round(float(store.std.mean()), 6),
            },
        )


def extract(params: Params, run: Run, tokenizer: Tokenizer, split: Split, folder: Path, device: torch.device) -> None:
    """Write this rank's part of the latents, and the statistics of all."""
    import torch

    from vtp import dist
    from vtp.data.batches import in_order
    from vtp.data.latents import LatentWriter
    from vtp.engine.inference import put_to_work, same_shape
    from vtp.engine.loop import autocast
    from vtp.engine.session import open_track

    put_to_work(tokenizer, device, compiled=params.run.compile)
    encode = same_shape(tokenizer.encode, params.latents.batch, compiled=params.run.compile)
    mine = torch.tensor(dist.part(len(split)))
    with open_track(run, params.run) as track, torch.inference_mode(), autocast(device):
        writer = LatentWriter(folder, shard_samples=params.latents.shard_samples)
        bar = track.bar(-(-len(mine) // params.latents.batch))
        for batch in in_order(split, mine, batch=params.latents.batch, workers=params.run.workers):
            pixels = batch["images"].to(device, non_blocking=True) / 255
            writer.append(encode(pixels), encode(pixels.flip(-1)), batch["labels"])
            bar.advance(len(pixels))
        bar.close()
        writer.finish(statistics_samples=params.latents.statistics_samples, seed=params.seed)


if __name__ == "__main__":
    entry(main)
