"""Train the diffusion transformer on latents."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("train_dit", params, launchable=True) as run:
        from vtp import dist
        from vtp.artifacts import read_manifest
        from vtp.data.latents import LatentBatches, LatentStore, save_statistics
        from vtp.engine.session import start, train
        from vtp.models.dit import DiT
        from vtp.models.dit_blocks import DitOptions
        from vtp.reporting.curves import write_csv
        from vtp.seeding import generator
        from vtp.tasks.dit import TrainDit

        device = start(params.run)
        p = params.dit
        folder = ROOT / "data" / "extract_latents"
        store = LatentStore.open(folder)
        options = DitOptions(
            latent_channels=store.shape[0],
            grid=store.shape[1],
            patch=p.patch,
            width=p.width,
            depth=p.depth,
            heads=p.heads,
            num_classes=read_manifest(folder, verify=False)["num_classes"],
            mlp_ratio=4.0,
            learn_sigma=False,
            qk_norm=p.qk_norm,
            swiglu=p.swiglu,
            rope=p.rope,
            rmsnorm=p.rmsnorm,
            shift=p.shift,
        )
        model = DiT(options)
        model.init_weights(generator(params.seed, "dit"))
        task = TrainDit(p, model, microbatch=params.run.microbatch)
        end = train(task, LatentBatches(store, p.batch, params.seed), run, params.run, seed=params.seed, device=device)
        with run.out() as folder:
            if dist.is_main():
                task.ema.save_pretrained(folder)
                save_statistics(folder, store.mean, store.std)  # samples come out in the space of latents normalised so
                write_csv(ROOT / "reports" / "curves" / "dit.csv", end.history)
        run.metrics("dit", {**end.history[-1], "million_parameters": round(sum(x.numel() for x in model.parameters()) / 1e6, 3)})


if __name__ == "__main__":
    entry(main)
