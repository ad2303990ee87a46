"""The schema of recipes: YAML files that define network, diffusion and both training stages.

The dataclasses are the schema: their defaults are the official deraining recipe (docs/paper.md,
"Schedule"), and their types state the limits that `recipe.files` checks. `schema()` returns all of
it as JSON schema.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from c2fdft_cli.validation import STRICT, NotBool, adapter
from c2fdft_cli.vocabulary import (
    Compile,
    DegradationName,
    NormName,
    Precision,
    ProtocolName,
    RecomputeSetting,
    Schedule,
    Spacing,
    Ssim,
    Task,
    Tensorboard,
    TrainedStage,
    WeightSet,
)
from c2fdft_cli.words import finite_or_none

MAX_DIM = 1024
MAX_BLOCKS = 64
MAX_FFN_FACTOR = 1024
MAX_TIMESTEPS = 1_000_000
"""Limits that keep a malicious file from requesting an unlimited network or schedule."""

MAX_COUNT = 1_000_000_000
MAX_BATCH = 65_536
MAX_PATCH = 8192
MAX_WORKERS = 256
"""Limits that only a typing error exceeds: no counter, memory or machine holds larger numbers."""

# MS-SSIM has five scales, so the patch is halved four times, which must leave one pixel.
MIN_MS_SSIM_PATCH = 16

Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_COUNT), NotBool]
NotNegative: TypeAlias = Annotated[float, Field(ge=0), NotBool]
Positive: TypeAlias = Annotated[float, Field(gt=0), NotBool]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1), NotBool]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1), NotBool]
Levels: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_BLOCKS), NotBool]], Field(min_length=4, max_length=4)
]
Patches: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=8, le=MAX_PATCH, multiple_of=8), NotBool]], Field(min_length=1)
]
Batches: TypeAlias = list[Annotated[int, Field(ge=1, le=MAX_BATCH), NotBool]]


def _words(meanings: dict[str, str]) -> BeforeValidator:
    """Map values that YAML or earlier versions write as true and false to the present words."""
    return BeforeValidator(lambda value: meanings.get(str(value), value))


def _micro_batch(value: object) -> int | str:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be 'auto' or at least 1")


class Section:
    """What the sections of a recipe have in common: no unknown key, no NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass
class Network(Section):
    """The network: arguments of `core.network.DFT`.

    Args:
        dim: channels of the first level, even; each further level has twice as many.
        blocks: blocks of each of the 4 levels.
        heads: attention heads of each level; each must divide the level's channels.
        ffn_factor: hidden channels of the feed-forward network, as a multiple of the level's.
        bias: biases in the convolutions.
        norm: layer norm `with_bias`, or `bias_free`: without bias and without subtracting the mean.
        dual_pixel: add a 1x1 projection of the embedded input before the output convolution, and
            omit the final `+ x_t`.
    """

    dim: Annotated[int, Field(ge=4, le=MAX_DIM, multiple_of=2), NotBool] = 48
    blocks: Levels = field(default_factory=lambda: [4, 6, 6, 8])
    heads: Levels = field(default_factory=lambda: [1, 2, 4, 8])
    ffn_factor: Annotated[float, Field(gt=0, le=MAX_FFN_FACTOR), NotBool] = 4.0
    bias: bool = False
    norm: NormName = "with_bias"
    dual_pixel: bool = False

    @field_validator("heads")
    @classmethod
    def _heads_divide_widths(cls, heads: list[int], info: ValidationInfo) -> list[int]:
        # `info.data` has only the valid ones of the fields defined before this one, so the order of
        # fields matters for such checks.
        widths = [info.data["dim"] << level for level in range(4)] if "dim" in info.data else []
        for count, width in zip(heads, widths, strict=False):
            if width % count:
                raise ValueError(f"must divide the widths, {count} does not divide {width}")
        return heads

    @field_validator("ffn_factor")
    @classmethod
    def _has_hidden_channels(cls, factor: float, info: ValidationInfo) -> float:
        if int(info.data.get("dim", MAX_DIM) * factor) < 1:
            raise ValueError("must give at least one hidden channel (dim * ffn_factor >= 1)")
        return factor


@dataclass
class Diffusion(Section):
    """The noise schedule, 0 < beta_start <= beta_end < 1.

    Args:
        schedule: how beta_t rises from `beta_start` to `beta_end`; `const` stays at `beta_end`.
            `jsd` ignores both and rises to 1, which leaves nothing of the image at the last
            timestep, so it needs `sampling.spacing=leading` or a `sampling.grid` that starts at a
            smaller timestep.
        timesteps: T, the number of timesteps.
        beta_start: the first beta_t.
        beta_end: the last beta_t.
    """

    schedule: Schedule = "linear"
    timesteps: Annotated[int, Field(ge=2, le=MAX_TIMESTEPS), NotBool] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1), NotBool] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1), NotBool] = 0.02

    @field_validator("beta_end")
    @classmethod
    def _is_the_larger_beta(cls, end: float, info: ValidationInfo) -> float:
        if end < info.data.get("beta_start", 0):
            raise ValueError(f"must be at least beta_start, {info.data['beta_start']:g}")
        return end


@dataclass
class Sampling(Section):
    """The sampler's timesteps: explicit (`grid`), or `steps` of them with a `spacing`.

    Args:
        steps: number of sampling steps.
        spacing: how their timesteps are spaced.
        grid: explicit timesteps, descending, instead of `steps` and `spacing`.
        eta: amount of noise added in each step of validation, sweeps, `eval --weights` and
            `restore`, 0 (none, DDIM) to 1 (ancestral, DDPM). The fine loss has none.
    """

    steps: Count = 4
    spacing: Spacing = "linspace"
    grid: Annotated[list[Annotated[int, Field(ge=0), NotBool]], Field(min_length=1)] | None = None
    eta: Share = 0.0

    @field_validator("grid")
    @classmethod
    def _descends(cls, grid: list[int] | None) -> list[int] | None:
        if grid is not None and any(a <= b for a, b in pairwise(grid)):
            raise ValueError("must be descending timesteps")
        return grid


@dataclass
class Data(Section):
    """Where pairs come from, and how crops are degraded when there are only clean images.

    Args:
        shards: folder of shards, relative to the current folder; `--data` takes precedence.
        synthesize: degradation that is applied to each crop during training; null for the shards'
            own degraded images.
        synthesis: settings of that degradation: docs/synthesis.md lists them. A recipe or option
            that chooses another degradation discards those of the recipe that it extends.
        line_patterns: share of those crops, 0 to 1, whose clean picture first gets thin straight
            lines (fences, blinds), so that the network learns which lines to keep.
        streaks: folder of rendered rain streaks (PNG), for rain.
        workers: number of processes that make batches; 0 for a thread of the training process; null
            for 2 processes on a GPU (up to 8 if crops are degraded during training), 0 on a CPU.
    """

    shards: str | None = None
    synthesize: DegradationName | None = None
    synthesis: dict[str, Any] = field(default_factory=dict)
    line_patterns: Share = 0.0
    streaks: str | None = None
    workers: Annotated[int, Field(ge=0, le=MAX_WORKERS), NotBool] | None = None

    @field_validator("synthesis")
    @classmethod
    def _has_finite_numbers(cls, synthesis: dict[str, Any]) -> dict[str, Any]:
        if finite_or_none(synthesis) != synthesis:
            raise ValueError("must have finite numbers")
        return synthesis


@dataclass
class Period(Section):
    """One cosine of the learning rate.

    Args:
        length: number of iterations.
        floor: the learning rate at its end; it starts at `lr`.
    """

    length: Count
    floor: NotNegative = 0.0


@dataclass
class Stage(Section):
    """One training stage. Batches are global: over all devices and micro-batches.

    Args:
        iterations: number of iterations.
        patches: sides of the square patches in pixels, used one after another.
        batches: images in a batch, for each patch size.
        switch_every: iterations before the next patch size.
        cycles: rounds through all patch sizes; after them the last size stays.
        lr: learning rate at the start of each period.
        periods: cosines of the learning rate, one after another.
        mixup_beta: b of Beta(b, b), from which mixup samples its weight; mixup is applied with
            probability 1/2; null for no mixup.
    """

    iterations: Count = 270_000
    patches: Patches = field(default_factory=lambda: [32, 64, 128])
    batches: Batches = field(default_factory=lambda: [720, 192, 48])
    switch_every: Count = 10_000
    cycles: Count = 9
    lr: Positive = 3e-4
    periods: Annotated[list[Period], Field(min_length=1)] = field(
        default_factory=lambda: [Period(50_000, 3e-4), Period(220_000, 1e-5)]
    )
    mixup_beta: Positive | None = None

    @field_validator("batches")
    @classmethod
    def _one_for_each_patch(cls, batches: list[int], info: ValidationInfo) -> list[int]:
        patches = info.data.get("patches")
        if patches is not None and len(patches) != len(batches):
            raise ValueError(f"must be as many batches as patches, {patches}")
        return batches

    @field_validator("periods")
    @classmethod
    def _fall_below_lr(cls, periods: list[Period], info: ValidationInfo) -> list[Period]:
        lr = info.data.get("lr")
        if lr is not None and any(period.floor > lr for period in periods):
            raise ValueError(f"must have floors of at most lr, {lr:g}")
        return periods


@dataclass
class FineStage(Stage):
    """The fine stage: the keys of a stage, its loss, and which coarse weights it starts from.

    Args:
        ssim: the MS-SSIM term: `paper` with the true range of the values, `as_released` with a
            range of 255 for values in [-1, 1] (effectively L1 alone), or `none`.
        ssim_weight: weight of 1 - MS-SSIM.
        l1_weight: weight of L1, of values in [-1, 1].
        fourier_weight: weight of L1 between the Fourier transforms, which helps against blur.
        start_from: start from the coarse checkpoint's averaged (`ema`) or `raw` weights.
        recompute: which activations back-propagation recomputes to save memory: `none`, those
            inside each sampling step (`call`), or also those inside each level (`level`). `auto` is
            `none` on CUDA if that fits into memory, otherwise `call`, or `level` if `call` does not
            fit either.
    """

    iterations: Count = 90_000
    batches: Batches = field(default_factory=lambda: [192, 48, 12])
    switch_every: Count = 5_000
    cycles: Count = 6
    lr: Positive = 1e-5
    periods: Annotated[list[Period], Field(min_length=1)] = field(
        default_factory=lambda: [Period(10_000, 1e-5), Period(80_000, 1e-7)]
    )
    ssim: Ssim = "paper"
    ssim_weight: NotNegative = 0.84
    l1_weight: NotNegative = 0.16
    fourier_weight: NotNegative = 0.0
    start_from: WeightSet = "ema"
    recompute: Annotated[RecomputeSetting, _words({"True": "call", "False": "none"})] = "call"

    @field_validator("ssim")
    @classmethod
    def _fits_the_patches(cls, ssim: str, info: ValidationInfo) -> str:
        if (
            ssim != "none"
            and min(info.data.get("patches", [MIN_MS_SSIM_PATCH])) < MIN_MS_SSIM_PATCH
        ):
            raise ValueError(f"must be 'none' for patches under {MIN_MS_SSIM_PATCH} px")
        return ssim


@dataclass
class Train(Section):
    """Settings of both stages: optimiser, averaging, precision, saving, validation.

    Args:
        seed: determines all random numbers.
        precision: precision of matrix products; `auto` is bf16 if it is faster on this machine,
            otherwise fp16 on CUDA and fp32 elsewhere. `--precision` takes precedence.
        compile: use torch.compile; `auto` only in long trainings on CUDA in which the program's own
            kernels do not run.
        micro_batch: images that go through the network at once; `auto` depends on the free memory.
        adam_betas: the betas of AdamW.
        weight_decay: weight decay of AdamW.
        ema_decay: decay of the exponential moving average of the weights, per update.
        ema_warm_up: let the decay rise from 2/11 during the first updates.
        clip_norm: largest norm of the gradient; null for no limit.
        max_bad_steps: consecutive steps without a finite gradient that end the run.
        log_every: iterations between two rows of metrics.csv.
        save_every: iterations between two saved states.
        keep: number of newest checkpoints to keep.
        validate_every: iterations between two validations.
        validation_images: number of validation pairs to restore; 0 for all.
        protocol: protocol of PSNR and SSIM: docs/metrics.md.
        tensorboard: write TensorBoard files; `auto` does so if it is installed.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 63), NotBool] = 100
    precision: Precision = "auto"
    compile: Annotated[Compile, _words({"True": "on", "False": "off"})] = "auto"
    micro_batch: Annotated[
        int | str, PlainValidator(_micro_batch, json_schema_input_type=Count | Literal["auto"])
    ] = "auto"
    adam_betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.9, 0.999]
    )
    weight_decay: NotNegative = 1e-4
    ema_decay: Decay = 0.999
    ema_warm_up: bool = True
    clip_norm: Positive | None = None
    max_bad_steps: Count = 20
    log_every: Count = 100
    save_every: Count = 5_000
    keep: Count = 3
    validate_every: Count = 5_000
    validation_images: Annotated[int, Field(ge=0), NotBool] = 10
    protocol: ProtocolName = "rgb"
    tensorboard: Annotated[Tensorboard, BeforeValidator(lambda value: str(value).lower())] = "auto"


@dataclass
class Recipe(Section):
    """Everything that determines a training run, apart from the images themselves.

    Args:
        task: what the weights are for; `restore` for any other task.
        network: the network: docs/paper.md, "Diffusion Transformer".
        diffusion: the noise schedule: docs/paper.md, "Forward diffusion".
        sampling: the sampler's timesteps in fine training and in validation.
        data: the training data.
        coarse: stage 1.
        fine: stage 2.
        train: settings of both stages.
    """

    task: Task = "derain"
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    sampling: Sampling = field(default_factory=Sampling)
    data: Data = field(default_factory=Data)
    coarse: Stage = field(default_factory=Stage)
    fine: FineStage = field(default_factory=FineStage)
    train: Train = field(default_factory=Train)

    @field_validator("sampling")
    @classmethod
    def _lies_within_timesteps(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        diffusion = info.data.get("diffusion")
        if diffusion is not None:
            if sampling.grid is None and sampling.steps > diffusion.timesteps:
                raise ValueError(f"must have steps of at most {diffusion.timesteps}")
            if sampling.grid is not None and sampling.grid[0] >= diffusion.timesteps:
                raise ValueError(f"must have a grid within 0 to {diffusion.timesteps - 1}")
        return sampling

    def section(self, stage: TrainedStage) -> Stage:
        """Return the settings of a stage."""
        return self.coarse if stage == "coarse" else self.fine

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain lists, dictionaries and numbers, as for JSON."""
        return asdict(self)


def schema() -> dict[str, Any]:
    """Return all keys of a recipe with their types, limits and defaults, as JSON schema."""
    return adapter(Recipe).json_schema()
