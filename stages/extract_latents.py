"""Encode the training pictures, and their mirror images, once; count the channels' statistics.

Latents are stored in float32. On a GPU the matrix products that make them are bfloat16 (the reference extracts in float32 with
TF32); on a CPU everything is float32.
"""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("extract_latents", params, launchable=True) as run:
        import torch

        from vtp import dist
        from vtp.data.latents import LatentStore, LatentWriter
        from vtp.data.shards import Prepared
        from vtp.engine.inference import put_to_work, same_shape
        from vtp.engine.loop import autocast
        from vtp.engine.session import open_track, start
        from vtp.models.tokenizer import VisualTokenizer

        device = start(params.run)
        data = Prepared.open(ROOT / "data" / "prepare", run.work / "undecodable.txt")
        tokenizer = VisualTokenizer.from_pretrained(ROOT / "data" / "pretrain")
        put_to_work(tokenizer, device, compiled=params.run.compile)
        encode = same_shape(tokenizer.encode, params.latents.batch, compiled=params.run.compile)
        mine = torch.tensor(dist.part(len(data.train)))
        with (
            run.out({"num_classes": data.num_classes}) as folder,
            open_track(run, params.run) as track,
            torch.inference_mode(),
            autocast(device),
        ):
            writer = LatentWriter(folder, shard_samples=params.latents.shard_samples)
            bar = track.bar(-(-len(mine) // params.latents.batch))
            for rows in mine.split(params.latents.batch):
                batch = data.train.rows(rows)
                pixels = batch["images"].to(device) / 255
                writer.append(encode(pixels), encode(pixels.flip(-1)), batch["labels"])
                bar.advance(len(rows))
            bar.close()
            writer.finish(statistics_samples=params.latents.statistics_samples, seed=params.seed)
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


if __name__ == "__main__":
    entry(main)
