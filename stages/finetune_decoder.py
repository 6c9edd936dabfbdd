"""Refine the pixel decoder against a discriminator; everything else of the tokenizer stays as it is."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("finetune_decoder", params, launchable=True) as run:
        from vtp import dist
        from vtp.artifacts import read_manifest, tensors_digest
        from vtp.data.batches import Batches
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.session import start, train
        from vtp.models.card import Card
        from vtp.models.discriminator import discriminator
        from vtp.models.frozen import perceptual
        from vtp.models.kinds import open_tokenizer
        from vtp.reporting.curves import write_csv
        from vtp.seeding import generator
        from vtp.tasks.decoder import FinetuneDecoder

        device = start(params.run)
        options = params.finetune_decoder
        data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
        tokenizer = open_tokenizer(ROOT / "data" / "pretrain")
        given = read_manifest(ROOT / "data" / "pretrain", verify=False)["given"]
        before = tensors_digest(frozen_part(tokenizer.state_dict()))
        task = FinetuneDecoder(
            options,
            tokenizer,
            discriminator(options.discriminator, generator(params.seed, "discriminator")),
            perceptual(params.perceptual.net, params.perceptual.weights, params.seed),
            image_size=params.data.image_size,
            microbatch=params.run.microbatch,
        )
        batches = Batches(data.train, batch=options.batch, seed=params.seed, workers=params.run.workers)
        end = train(task, batches, run, params.run, seed=params.seed, device=device)
        tokenizer.decoder.load_state_dict(task.averaged.state_dict())
        assert tensors_digest(frozen_part(tokenizer.state_dict())) == before, "the frozen part of the tokenizer changed"
        with run.out({"frozen_sha256": before, "given": given}) as folder:
            if dist.is_main():
                tokenizer.save_pretrained(folder, Card.of_pipeline(given, "finetune_decoder", end.history[-1]))
                write_csv(ROOT / "reports" / "curves" / "finetune_decoder.csv", end.history)
        run.metrics("finetune_decoder", end.history[-1])


def frozen_part(state: dict) -> dict:
    """All tensors but the decoder's."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


if __name__ == "__main__":
    entry(main)
