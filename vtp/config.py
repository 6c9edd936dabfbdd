"""The schema of params.yaml: types and ranges, no values.

`load()` reads the file through Hydra's compose, so that overrides on the command line follow the same grammar as
`dvc exp run -S`, and checks the whole of it, whichever stage asks. Only `stages/` sees the whole `Params`; the library takes
the part it uses.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vtp.config_checks import check
from vtp.config_data import DataParams as DataParams
from vtp.origins import folder_of, given
from vtp.typed import ConfigError, Count, Interval, Positive, Range, Rate, Weight, Whole, build, unknown

ROOT = Path(__file__).resolve().parents[1]
FEWEST_MEASURED = 1000
"""Pictures of a set whose distance is measured: below, the estimators say more about the sample than about the model."""
"""The checkout this code was imported from."""


@dataclass(frozen=True)
class TransformerSize:
    width: Count
    depth: Count
    heads: Count


@dataclass(frozen=True)
class ModelSize:
    encoder: TransformerSize
    decoder: TransformerSize
    text: TransformerSize


@dataclass(frozen=True)
class ModelParams:
    size: str
    sizes: dict[str, ModelSize]


Ffn = Literal["mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128"]
Norm = Literal["rmsnorm", "layernorm", "layernormbf16"]


@dataclass(frozen=True)
class EncoderParams:
    ffn: Ffn
    norm: Norm
    qk_norm: bool
    layer_scale: Weight
    registers: Whole
    bottleneck_for_all: bool
    clip_feature: Literal["cls", "pooled"]


@dataclass(frozen=True)
class DecoderParams:
    ffn: Ffn
    norm: Norm
    qk_norm: bool
    layer_scale: Weight


@dataclass(frozen=True)
class ConvolutionalParams:
    width: Annotated[int, Range(least=4)]
    doublings: Whole
    blocks: Count


@dataclass(frozen=True)
class TokenizerParams:
    source: str
    network: Literal["transformer", "convolutional"]
    patch: Count
    latent_channels: Count
    rope: Literal["float32", "bfloat16"]
    encoder: EncoderParams
    decoder: DecoderParams
    convolutional: ConvolutionalParams


@dataclass(frozen=True)
class Ramp:
    """`start` at step 0, `end` from step `steps` on, half a cosine between."""

    start: float
    end: float
    steps: Whole


@dataclass(frozen=True)
class OptimizerParams:
    """AdamW. The rate rises over `warmup` steps, stays, and falls to `final_rate` x `rate` over the last `cooldown` steps."""

    rate: Positive
    warmup: Whole
    cooldown: Whole
    final_rate: Rate
    betas: tuple[Rate, Rate]
    weight_decay: Weight
    clip: Positive | None


@dataclass(frozen=True)
class ViewParams:
    clip_scale: Interval
    reconstruction_scale: Interval
    global_size: Count
    global_scale: Interval
    local_size: Count
    local_scale: Interval
    local_crops: Whole
    jitter: Rate
    grayscale: Rate
    blur: tuple[Rate, Rate, Rate]
    solarize: Rate


@dataclass(frozen=True)
class SslParams:
    prototypes: Count
    head_hidden: Count
    head_bottleneck: Count
    head_layers: Count
    freeze_last_layer: Whole
    targets: Literal["sinkhorn", "centring"]
    student_temperature: Positive
    teacher_temperature: Ramp
    teacher_momentum: Ramp
    mask_probability: Rate
    mask_ratio: tuple[Rate, Rate]


@dataclass(frozen=True)
class AlignParams:
    teacher: str | None
    weight: Weight
    distance_margin: Rate
    cosine_margin: Rate
    adaptive_max: Positive


@dataclass(frozen=True)
class PretrainParams:
    init_from: str | None
    objective: Literal["ae", "clip+ae", "ssl+ae", "clip+ssl+ae", "ae+align", "ae+kl"]
    contrast: Literal["softmax", "sigmoid"]
    data_fraction: Annotated[float, Range(above=0, most=1)]
    steps: Count
    batch: Count
    ssl_batch: Count
    reconstruction_batch: Count
    weights: dict[str, Weight]
    frozen: bool
    latent_noise: Weight
    drop_path: Rate
    share_clip_view: bool
    optimizer: OptimizerParams
    views: ViewParams
    ssl: SslParams
    align: AlignParams


@dataclass(frozen=True)
class PerceptualParams:
    net: Literal["squeeze", "alex", "vgg"]
    weights: Literal["published", "random"]


@dataclass(frozen=True)
class DiscriminatorParams:
    kind: Literal["patch", "features"]
    width: Count
    layers: Count
    feature_model: str


@dataclass(frozen=True)
class DecoderFinetuneParams:
    steps: Count
    batch: Count
    weights: dict[str, Weight]
    discriminator_start: Whole
    adversarial_start: Whole
    adaptive_max: Positive
    latent_noise: Weight
    augment: Rate
    ema: Rate
    crop_scale: Interval
    optimizer: OptimizerParams
    discriminator: DiscriminatorParams
    discriminator_optimizer: OptimizerParams


@dataclass(frozen=True)
class LatentParams:
    source: str
    batch: Count
    shard_samples: Count
    statistics_samples: Count


@dataclass(frozen=True)
class DitParams:
    source: str
    init_from: str | None
    width: Count
    depth: Count
    heads: Count
    patch: Count
    mlp_ratio: Positive
    qk_norm: bool
    swiglu: bool
    rope: bool
    rmsnorm: bool
    shift: bool
    class_dropout: Rate
    steps: Count
    batch: Count
    time_mu: float
    time_sigma: Positive
    weights: dict[str, Weight]
    ema: Rate
    optimizer: OptimizerParams


Solver = Literal["euler", "heun", "midpoint", "heun3", "adams2", "adams3", "dpmpp2m", "dopri5"]


@dataclass(frozen=True)
class SampleParams:
    samples: Count
    batch: Count
    solver: Solver
    points: Annotated[int, Range(least=2)]
    shift: Positive
    guidance_scale: Weight
    guidance_interval: tuple[Rate, Rate]
    guidance_channels: Literal["all", "first3"]
    unguided: bool


@dataclass(frozen=True)
class MetricNetworkParams:
    model: str
    steps: Count
    batch: Count
    crop_scale: Interval
    optimizer: OptimizerParams


@dataclass(frozen=True)
class ProbeParams:
    max_samples: Count
    penalties: tuple[Positive, ...]
    iterations: Count


@dataclass(frozen=True)
class EvaluateParams:
    batch: Count
    features: Literal["metric", "inception"]
    reference: Literal["train", "validation"]
    templates: tuple[str, ...]
    probe: ProbeParams
    metric_network: MetricNetworkParams


@dataclass(frozen=True)
class RunParams:
    """How, not what: none of these changes a result, and no stage depends on them."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Count | None
    workers: Whole
    executor: Literal["processes", "ray"]
    cache_gigabytes: Positive
    microbatch: Count | None
    compile: bool
    profile: Count | None
    replay: bool
    deterministic: bool
    save_every: Count
    log_every: Count
    picture_every: Count
    adopt: str | None
    fresh: bool
    alongside: bool
    name: str | None
    tags: dict[str, str]


@dataclass(frozen=True)
class Params:
    seed: Whole
    data: DataParams
    model: ModelParams
    tokenizer: TokenizerParams
    perceptual: PerceptualParams
    pretrain: PretrainParams
    finetune_decoder: DecoderFinetuneParams
    latents: LatentParams
    dit: DitParams
    sample: SampleParams
    evaluate: EvaluateParams
    run: RunParams

    @property
    def sizes(self) -> ModelSize:
        """The row of `model.sizes` that `model.size` names."""
        return self.model.sizes[self.model.size]

    @property
    def given_tokenizer(self) -> Path | None:
        """The folder of a tokenizer from outside: to use as it is, to go on from, or to be held close to; None without one."""
        return given(self.tokenizer.source, "train", self.pretrain.init_from or folder_of(self.pretrain.align.teacher))

    @property
    def given_latents(self) -> Path | None:
        """The folder of latents from outside; None without one."""
        return given(self.latents.source, "extract", None)

    @property
    def given_dit(self) -> Path | None:
        """The folder or checkpoint of a diffusion transformer from outside, for the same ends; None without one."""
        return given(self.dit.source, "train", self.dit.init_from)


def load(overrides: list[str] | None = None, file: Path = ROOT / "params.yaml") -> Params:
    """params.yaml with Hydra overrides (`pretrain.steps=10`), typed and checked.

    Raises:
        ConfigError: with one line that names the key and the remedy.
    """
    text = text_of(file)
    if "${" in text:
        raise ConfigError(f"{file.name} holds an interpolation (${{...}}), which DVC cannot follow; write the value out.")
    return _composed(file, text, tuple(overrides or ()))


@functools.lru_cache(maxsize=1)  # a stage looks again and again whether the file has changed, and it takes half a second
def _composed(file: Path, text: str, overrides: tuple[str, ...]) -> Params:
    """The file as Hydra reads it; `text` is what it holds."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        with initialize_config_dir(str(file.parent), version_base="1.3"):
            raw = OmegaConf.to_container(compose(file.stem, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise _refused(error, file) from None
    except YAMLError as error:
        raise no_yaml(file.name, error) from None
    return parse(raw)


def text_of(file: Path) -> str:
    """What a file of parameters holds.

    Raises:
        ConfigError: there is none, or it is no text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        back = "; `git checkout params.yaml` brings the default back" if file == ROOT / "params.yaml" else ""
        raise ConfigError(f"{file} does not exist{back}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no text, let alone YAML.") from None


def no_yaml(origin: str, error: Exception) -> ConfigError:
    """What a reader of YAML says in a paragraph, in a line that names where it was read."""
    return ConfigError(f"{origin} cannot be read as YAML: {' '.join(str(error).split())}")


def _refused(error: Exception, file: Path) -> ConfigError:
    """What Hydra says of an override in a paragraph, in a line."""
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    cause = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        above = OmegaConf.to_container(OmegaConf.load(file))
        for part in cause.full_key.split(".")[:-1]:
            above = above.get(part) if isinstance(above, dict) else None
        return unknown(cause.full_key, above if isinstance(above, dict) else ())
    told = f"{error.override} cannot be read" if isinstance(error, OverrideParseException) else " ".join(str(cause).split())
    told, ambiguous, _ = told.partition(" 1. To use it as a list")
    if ambiguous or isinstance(error, OverrideParseException):
        return ConfigError(f"{told}; write key=value, and a value with commas or braces in quotes of its own: \"key='a,b'\".")
    return ConfigError(f"{file.name}: {told}")


def parse(raw: object) -> Params:
    """A tree of plain values as parameters, typed and checked.

    Raises:
        ConfigError: with one line that names the key and the remedy.
    """
    params = build(Params, raw)
    check(params)
    return params
