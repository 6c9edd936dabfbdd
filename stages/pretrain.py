"""Joint pre-training of the tokenizer: contrast, self-distillation and reconstruction."""

from __future__ import annotations

from pathlib import Path

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("pretrain", params, launchable=True) as run:
        from vtp import dist
        from vtp.data import pins
        from vtp.data.batches import Batches
        from vtp.data.shards import Prepared, Scratch
        from vtp.engine.session import start, train
        from vtp.models.card import Card
        from vtp.models.given import as_it_is, begin_from
        from vtp.models.kinds import FILES
        from vtp.reporting.curves import write_csv

        device, given = start(params.run), params.given_tokenizer
        begun = given is not None and params.pretrain.align.teacher is None
        if given is not None:
            pins.check_given("tokenizer", given, FILES, ROOT / "data" / "inputs")
        if given is not None and params.tokenizer.source != "train":
            tokenizer = as_it_is(given, params.data.image_size)
            history: list[dict[str, float]] = []
            numbers: dict[str, float | None] = {"step": 0, "loss": None, "pretrain_flops": 0}
        else:
            data = Prepared.open(ROOT / "data" / "prepare", Scratch.of(run.work, params.run.cache_gigabytes))
            data.check_captions(params.pretrain.objective)
            tokenizer = tokenizer_of(params)
            if params.pretrain.init_from is not None:
                begin_from(tokenizer, Path(params.pretrain.init_from), trunk_only=params.pretrain.frozen)
            task = task_of(params, tokenizer)
            workers, share = params.run.workers, params.pretrain.data_fraction
            batches = Batches(data.train, batch=params.pretrain.batch, seed=params.seed, workers=workers, fraction=share)
            end = train(task, batches, run, params.run, seed=params.seed, device=device)
            history, numbers = end.history, {**end.history[-1], "pretrain_flops": end.flops * params.pretrain.steps}
        with run.out({"given": begun}) as folder:
            if dist.is_main():
                tokenizer.save_pretrained(folder, Card.of_pipeline(begun, "pretrain", history[-1] if history else {}))
                write_csv(ROOT / "reports" / "curves" / "pretrain.csv", history)
        millions = {
            f"{name}_million_parameters": round(sum(p.numel() for p in part.parameters()) / 1e6, 3)
            for name, part in tokenizer.named_children()
        }
        run.metrics("pretrain", {**numbers, **millions})


def tokenizer_of(params: Params):  # noqa: ANN201  (types are imported late, with torch)
    """A new tokenizer."""
    from vtp.models.convolutional import ConvolutionalTokenizer
    from vtp.models.tokenizer import VisualTokenizer
    from vtp.seeding import generator

    if params.tokenizer.network == "convolutional":
        return ConvolutionalTokenizer.new(params.tokenizer, params.data.image_size, params.seed)
    tokenizer = VisualTokenizer(options(params))
    tokenizer.init_weights(generator(params.seed, "tokenizer"))
    return tokenizer


def task_of(params: Params, tokenizer):  # noqa: ANN001, ANN201
    """What is trained."""
    from vtp.models.frozen import perceptual
    from vtp.seeding import generator
    from vtp.tasks.choice import pretraining

    distance, head = perceptual(params.perceptual.net, params.perceptual.weights, params.seed), generator(params.seed, "head")
    size, micro = params.data.image_size, params.run.microbatch
    return pretraining(params.pretrain, tokenizer, distance, image_size=size, generator=head, microbatch=micro)


def options(params: Params):  # noqa: ANN201
    """The tokenizer's shape: the ladder's row, and what no row changes."""
    from vtp.models.options import SIGLIP, LogitOptions, options_of

    captions = params.data.context_length if "clip" in params.pretrain.objective else None
    logit = SIGLIP if params.pretrain.contrast == "sigmoid" else LogitOptions()
    return options_of(params.sizes, params.tokenizer, logit, image_size=params.data.image_size, context_length=captions)


if __name__ == "__main__":
    entry(main)
