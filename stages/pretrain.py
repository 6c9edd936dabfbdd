"""Joint pre-training of the tokenizer: contrast, self-distillation and reconstruction."""

from __future__ import annotations

from vtp.config import ROOT, Params
from vtp.run import entry, open_run


def main(params: Params) -> None:
    with open_run("pretrain", params, launchable=True) as run:
        from vtp import dist
        from vtp.data.batches import Batches
        from vtp.data.shards import Prepared
        from vtp.engine.session import start, train
        from vtp.models.frozen import perceptual
        from vtp.models.tokenizer import VisualTokenizer
        from vtp.reporting.curves import write_csv
        from vtp.seeding import generator
        from vtp.tasks.pretrain import Pretrain

        device = start(params.run)
        data = Prepared.open(ROOT / "data" / "prepare", run.work / "undecodable.txt")
        tokenizer = VisualTokenizer(options(params))
        tokenizer.init_weights(generator(params.seed, "tokenizer"))
        task = Pretrain(
            params.pretrain,
            tokenizer,
            perceptual(params.perceptual.net, params.perceptual.weights, params.seed),
            image_size=params.data.image_size,
            generator=generator(params.seed, "head"),
            microbatch=params.run.microbatch,
        )
        batches = Batches(
            data.train,
            batch=params.pretrain.batch,
            seed=params.seed,
            workers=params.run.workers,
            fraction=params.pretrain.data_fraction,
        )
        end = train(task, batches, run, params.run, seed=params.seed, device=device)
        with run.out() as folder:
            if dist.is_main():
                tokenizer.save_pretrained(folder)
                write_csv(ROOT / "reports" / "curves" / "pretrain.csv", end.history)
        millions = {
            f"{name}_million_parameters": round(sum(p.numel() for p in part.parameters()) / 1e6, 3)
            for name, part in tokenizer.named_children()
        }
        run.metrics("pretrain", {**end.history[-1], "pretrain_flops": end.flops * params.pretrain.steps, **millions})


def options(params: Params):  # noqa: ANN201  (the type is imported late, with torch)
    """The tokenizer's shape: the ladder's row, and what no row changes."""
    from vtp.models.blocks import BlockOptions
    from vtp.models.decoder import DecoderOptions
    from vtp.models.encoder import EncoderOptions
    from vtp.models.official import SIGLIP, LogitOptions, TokenizerOptions
    from vtp.models.text import TextOptions

    size, form = params.sizes, params.tokenizer

    def block(width: int, heads: int, side) -> BlockOptions:  # noqa: ANN001
        return BlockOptions(width, heads, 4.0, side.ffn, side.norm, side.qk_norm, side.layer_scale, form.rope)

    encoder, decoder, text = size.encoder, size.decoder, size.text
    return TokenizerOptions(
        image_size=params.data.image_size,
        encoder=EncoderOptions(
            form.patch,
            encoder.depth,
            form.latent_channels,
            form.encoder.registers,
            block(encoder.width, encoder.heads, form.encoder),
        ),
        decoder=DecoderOptions(
            form.patch, decoder.depth, form.latent_channels, block(decoder.width, decoder.heads, form.decoder)
        ),
        text=TextOptions(text.width, text.depth, text.heads, params.data.context_length, 49408)
        if "clip" in params.pretrain.objective
        else None,
        clip_feature=form.encoder.clip_feature,
        bottleneck_for_all=form.encoder.bottleneck_for_all,
        logit=SIGLIP if params.pretrain.contrast == "sigmoid" else LogitOptions(),
    )


if __name__ == "__main__":
    entry(main)
