"""Train the diffusion transformer on latents."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("train_dit", params, launchable=True) as run:
        from vtp import dist
        from vtp.artifacts import read_manifest
        from vtp.data import pins
        from vtp.data.latents import LatentBatches, LatentStore, own_statistics, save_statistics
        from vtp.engine.session import start, train
        from vtp.models.dit import DiT
        from vtp.models.given_dit import FILES, as_it_is, go_on_from, options_of
        from vtp.reporting.curves import write_csv
        from vtp.seeding import generator
        from vtp.tasks.dit import TrainDit

        device, p, given = start(params.run), params.dit, params.given_dit
        latents = ROOT / "data" / "extract_latents"
        num_classes = read_manifest(latents, verify=False)["num_classes"]
        if given is not None:
            pins.check_given("dit", given, FILES, ROOT / "data" / "inputs")
        store = LatentStore.open(latents, own_statistics(given))
        history: list[dict[str, float]] = []
        numbers: dict[str, float | None] = {"step": 0, "loss": None}
        if given is not None and p.source != "train":
            model = exported = as_it_is(given, store.shape, num_classes)
        else:
            model = DiT(options_of(p, store.shape, num_classes))
            model.init_weights(generator(params.seed, "dit"))
            if given is not None:
                go_on_from(model, given)
            task = TrainDit(p, model, microbatch=params.run.microbatch)
            batches = LatentBatches(store, p.batch, params.seed)
            end = train(task, batches, run, params.run, seed=params.seed, device=device)
            exported, history, numbers = task.ema, end.history, {**end.history[-1]}
        with run.out({"given": given is not None}) as folder:
            if dist.is_main():
                exported.save_pretrained(folder)
                save_statistics(folder, store.mean, store.std)  # samples come out in the space of latents normalised so
                write_csv(ROOT / "reports" / "curves" / "dit.csv", history)
        run.metrics("dit", {**numbers, "million_parameters": round(sum(x.numel() for x in model.parameters()) / 1e6, 3)})


if __name__ == "__main__":
    entry(main)
