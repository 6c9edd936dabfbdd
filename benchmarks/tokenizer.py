"""Encoding and decoding with VTP-L at 256 px: `python -m benchmarks.tokenizer --work W4-encode`.

1024 wide, 24 blocks and 16 heads both ways, random weights, 128 pictures at a time, as the stages that extract latents and decode
samples do it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import measure
from vtp.engine.inference import put_to_work
from vtp.engine.loop import autocast
from vtp.models.blocks import BlockOptions
from vtp.models.decoder import DecoderOptions
from vtp.models.encoder import EncoderOptions
from vtp.models.options import TokenizerOptions
from vtp.models.tokenizer import VisualTokenizer
from vtp.seeding import generator

log = logging.getLogger(__name__)

WORKS = ("W4-encode", "W4-decode")
LARGE, TINY = (1024, 24, 16, 256, "bfloat16"), (64, 2, 2, 32, "float32")
"""Width, depth, heads, pixels a side, precision of the rotation (bfloat16 as published)."""
TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}


def tokenizer(width: int, depth: int, heads: int, pixels: int, rope: str) -> VisualTokenizer:
    """Encoder and decoder in the published form, without a text tower, with random weights."""
    encoder, decoder = (
        BlockOptions(width, heads, 4.0, "swiglu", norm, qk_norm=True, layer_scale=0.0, rope=rope)
        for norm in ("rmsnorm", "layernorm")
    )
    options = TokenizerOptions(
        image_size=pixels,
        encoder=EncoderOptions(16, depth, 64, 0, encoder),
        decoder=DecoderOptions(16, depth, 64, decoder),
        text=None,
        clip_feature="cls",
        bottleneck_for_all=False,
    )
    model = VisualTokenizer(options)
    model.init_weights(generator(0, "benchmark"))
    return model.eval().requires_grad_(False)


def inputs(work: str, batch: int, pixels: int, device: torch.device) -> Tensor:
    """Pictures with structure for the encoder, latents for the decoder."""
    draw = generator(1, "benchmark", device=device)
    if work == "W4-decode":
        return torch.randn(batch, 64, pixels // 16, pixels // 16, generator=draw, device=device)
    coarse = torch.rand(batch, 3, 8, 8, generator=draw, device=device)
    return nn.functional.interpolate(coarse, size=(pixels, pixels), mode="bilinear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--tiny", action="store_true", help="a small model: does the benchmark itself work?")
    parser.add_argument("--reference", action="store_true", help="time the plain eager form as well")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, batch = (TINY, 4) if args.tiny else (LARGE, args.batch)
    given = inputs(args.work, batch, shape[3], device)
    model = tokenizer(*shape).to(device)

    def work(rows: Tensor = given) -> Tensor:
        return model.encode(rows) if args.work == "W4-encode" else model.decode(rows)

    extra: dict[str, object] = {"batch": batch}
    with torch.inference_mode():
        flop = batch * measure.flop(lambda: work(given[:1]))
        expected = torch.cat([work(rows) for rows in given.split(16)])  # float32, TF32 on a GPU, as the reference extracts
    with torch.inference_mode(), autocast(device):
        if args.reference:
            extra["plain_images_per_second"] = 1000 * batch / measure.timed(work, device, warmup=3, runs=10).milliseconds
        put_to_work(model, device, compiled=True)
        extra["error_against_float32"] = error = measure.relative_error([work()], [expected])
        if not error <= TOLERANCE[device.type]:
            raise SystemExit(f"{args.work}: the error is {error:.3g}, above {TOLERANCE[device.type]}: not the same work.")
        timing = measure.timed(work, device, warmup=5, runs=args.runs)
    extra["images_per_second"] = 1000 * batch / timing.milliseconds
    measure.record(
        args.work,
        timing,
        device,
        module="benchmarks.tokenizer",
        ceiling_tflops=measure.ceiling(device),
        flop=flop,
        extra=extra,
        folder=args.out,
    )


if __name__ == "__main__":
    main()
