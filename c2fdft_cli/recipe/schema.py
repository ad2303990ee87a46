"""Recipes: one YAML file per task that holds the network, the diffusion and both training stages.

The dataclasses are the schema; their defaults are the released deraining recipe (paper,
section 8). Loading and checking is in `recipe_files`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Optional, Union

# Optional and Union instead of `|`: OmegaConf reads these annotations at run time


@dataclass
class Network:
    """Arguments of `core.dft.DFT` (section 3)."""

    dim: int = 48
    blocks: list[int] = field(default_factory=lambda: [4, 6, 6, 8])
    heads: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    ffn_factor: float = 4.0
    bias: bool = False
    norm: str = "with_bias"
    dual_pixel: bool = False


@dataclass
class Diffusion:
    """The noise schedule (section 4)."""

    schedule: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02


@dataclass
class Sampling:
    """The sampler's grid (section 6): explicit times, or `steps` calls with a `spacing`."""

    steps: int = 4
    spacing: str = "linspace"
    grid: Optional[list[int]] = None  # noqa: UP045
    eta: float = 0.0


@dataclass
class Data:
    """Where pairs come from, and how crops are degraded when there are only clean images."""

    shards: Optional[str] = None  # noqa: UP045
    synthesize: Optional[str] = None  # noqa: UP045
    synthesis: dict[str, Any] = field(default_factory=dict)
    streaks: Optional[str] = None  # noqa: UP045
    workers: int = 0


@dataclass
class Period:
    """One cosine of the learning rate: its length in iterations and the floor it falls to."""

    length: int = 0
    floor: float = 0.0


@dataclass
class Stage:
    """One training stage (section 8). Batches are global: over all devices and micro-batches."""

    iterations: int = 270_000
    patches: list[int] = field(default_factory=lambda: [32, 64, 128])
    batches: list[int] = field(default_factory=lambda: [720, 192, 48])
    switch_every: int = 10_000
    cycles: int = 9
    lr: float = 3e-4
    periods: list[Period] = field(
        default_factory=lambda: [Period(50_000, 3e-4), Period(220_000, 1e-5)]
    )
    mixup_beta: Optional[float] = None  # noqa: UP045


@dataclass
class FineStage(Stage):
    """The fine stage (section 7): its loss, and which coarse weights it starts from."""

    iterations: int = 90_000
    batches: list[int] = field(default_factory=lambda: [192, 48, 12])
    switch_every: int = 5_000
    cycles: int = 6
    lr: float = 1e-5
    periods: list[Period] = field(
        default_factory=lambda: [Period(10_000, 1e-5), Period(80_000, 1e-7)]
    )
    ssim: str = "paper"
    ssim_weight: float = 0.84
    l1_weight: float = 0.16
    start_from: str = "ema"
    recompute: str = "call"

    def __post_init__(self) -> None:
        # true and false are what recipes and checkpoints said before there were three choices
        self.recompute = {"True": "call", "False": "none"}.get(str(self.recompute), self.recompute)


@dataclass
class Train:
    """What both stages share: optimiser, averaging, precision, saving, validation."""

    seed: int = 100
    precision: str = "auto"
    compile: str = "auto"
    micro_batch: Union[int, str] = "auto"  # noqa: UP007
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    ema_warm_up: bool = True
    clip_norm: Optional[float] = None  # noqa: UP045
    max_bad_steps: int = 20
    log_every: int = 100
    save_every: int = 5_000
    keep: int = 3
    validate_every: int = 5_000
    validation_images: int = 10
    protocol: str = "rgb"
    tensorboard: str = "auto"

    def __post_init__(self) -> None:
        # YAML reads on, off, true and false as True and False
        self.compile = {"True": "on", "False": "off"}.get(str(self.compile), self.compile)
        self.tensorboard = str(self.tensorboard).lower()


@dataclass
class Recipe:
    """Everything that decides a training run, apart from the images themselves."""

    task: str = "derain"
    network: Network = field(default_factory=Network)
    diffusion: Diffusion = field(default_factory=Diffusion)
    sampling: Sampling = field(default_factory=Sampling)
    data: Data = field(default_factory=Data)
    coarse: Stage = field(default_factory=Stage)
    fine: FineStage = field(default_factory=FineStage)
    train: Train = field(default_factory=Train)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries and numbers, as for JSON."""
        return asdict(self)


MAX_DIM = 1024
MAX_BLOCKS = 64
"""Limits that keep a hostile file from asking for a network that never ends."""

CHOICES = {
    "task": ("derain", "deblur", "denoise", "restore"),
    "network.norm": ("with_bias", "bias_free"),
    "diffusion.schedule": ("linear", "quad", "const", "jsd", "sigmoid"),
    "sampling.spacing": ("linspace", "leading", "trailing"),
    "data.synthesize": ("rain", "noise", "blur", None),
    "fine.ssim": ("paper", "as_released", "none"),
    "fine.start_from": ("ema", "raw"),
    "fine.recompute": ("none", "call", "level"),
    "train.precision": ("auto", "fp32", "bf16", "fp16"),
    "train.compile": ("auto", "on", "off"),
    "train.tensorboard": ("auto", "true", "false"),
    "train.protocol": ("derain", "derain-matlab", "deblur", "denoise", "rgb", "y"),
}


def problems(recipe: Recipe) -> list[str]:
    """Everything in a recipe that cannot work, each as `key: what is wrong`."""
    found: list[str] = []
    for key, allowed in CHOICES.items():
        value = _lookup(recipe, key)
        if value not in allowed:
            names = ", ".join(a for a in allowed if a is not None)
            found.append(f"{key}: one of {names}, got {value!r}")
    found += _network_problems(recipe.network)
    found += _diffusion_problems(recipe)
    found += _stage_problems("coarse", recipe.coarse) + _stage_problems("fine", recipe.fine)
    if recipe.fine.ssim != "none" and min(recipe.fine.patches, default=16) < 16:
        found.append("fine.patches: MS-SSIM needs patches of at least 16 px (or fine.ssim: none)")
    found += _at_least(recipe.fine, "fine", ("ssim_weight", "l1_weight"), 0)
    return found + _train_problems(recipe)


def _lookup(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _at_least(section: Any, prefix: str, names: tuple[str, ...], least: float) -> list[str]:
    return [
        f"{prefix}.{name}: at least {least}, got {getattr(section, name)}"
        for name in names
        if not getattr(section, name) >= least
    ]


def _network_problems(network: Network) -> list[str]:
    found = []
    if not 4 <= network.dim <= MAX_DIM or network.dim % 2:
        found.append(f"network.dim: even, 4 to {MAX_DIM}, got {network.dim}")
    for name in ("blocks", "heads"):
        value = getattr(network, name)
        if len(value) != 4 or min(value) < 1 or max(value) > MAX_BLOCKS:
            found.append(f"network.{name}: four numbers, 1 to {MAX_BLOCKS}, got {value}")
            return found
    found += [
        f"network.heads: {heads} does not divide the width {network.dim << level} of level "
        f"{level + 1}"
        for level, heads in enumerate(network.heads)
        if (network.dim << level) % heads
    ]
    if int(network.dim * network.ffn_factor) < 1:
        found.append(f"network.ffn_factor: leaves no hidden channel, got {network.ffn_factor}")
    return found


def _diffusion_problems(recipe: Recipe) -> list[str]:
    found = []
    diffusion, sampling = recipe.diffusion, recipe.sampling
    if diffusion.timesteps < 2:
        found.append(f"diffusion.timesteps: at least 2, got {diffusion.timesteps}")
    if not 0 < diffusion.beta_start <= diffusion.beta_end < 1:
        found.append("diffusion: want 0 < beta_start <= beta_end < 1")
    if not 1 <= sampling.steps <= diffusion.timesteps:
        found.append(f"sampling.steps: 1 to {diffusion.timesteps}, got {sampling.steps}")
    grid = sampling.grid
    if grid is not None and (
        not grid
        or not all(0 <= t < diffusion.timesteps for t in grid)
        or any(a <= b for a, b in pairwise(grid))
    ):
        found.append(
            f"sampling.grid: descending times within 0 to {diffusion.timesteps - 1}, got {grid}"
        )
    if not 0 <= sampling.eta <= 1:
        found.append(f"sampling.eta: 0 to 1, got {sampling.eta}")
    return found


def _stage_problems(name: str, stage: Stage) -> list[str]:
    found = _at_least(stage, name, ("iterations", "switch_every", "cycles"), 1)
    if not stage.lr > 0:
        found.append(f"{name}.lr: above 0, got {stage.lr}")
    if not stage.patches or len(stage.patches) != len(stage.batches):
        found.append(f"{name}: as many batches as patches, got {stage.patches} and {stage.batches}")
    found += [f"{name}.patches: multiples of 8, got {p}" for p in stage.patches if p < 8 or p % 8]
    found += [f"{name}.batches: at least 1, got {b}" for b in stage.batches if b < 1]
    if not stage.periods:
        found.append(f"{name}.periods: at least one of length and floor")
    found += [
        f"{name}.periods: length at least 1 and floor within 0 to lr, got {p.length}, {p.floor}"
        for p in stage.periods
        if p.length < 1 or not 0 <= p.floor <= stage.lr
    ]
    if stage.mixup_beta is not None and not stage.mixup_beta > 0:
        found.append(f"{name}.mixup_beta: above 0 or null, got {stage.mixup_beta}")
    return found


def _train_problems(recipe: Recipe) -> list[str]:
    train = recipe.train
    counts = ("max_bad_steps", "log_every", "save_every", "keep", "validate_every")
    found = _at_least(train, "train", counts, 1)
    found += _at_least(train, "train", ("seed", "weight_decay", "validation_images"), 0)
    if train.seed >= 1 << 63:
        found.append(f"train.seed: below 2^63, got {train.seed}")
    if len(train.adam_betas) != 2 or not all(0 <= b < 1 for b in train.adam_betas):
        found.append(f"train.adam_betas: two numbers within 0 to 1, got {train.adam_betas}")
    if not 0 <= train.ema_decay < 1:
        found.append(f"train.ema_decay: 0 to 1, got {train.ema_decay}")
    if train.clip_norm is not None and not train.clip_norm > 0:
        found.append(f"train.clip_norm: above 0 or null, got {train.clip_norm}")
    micro = train.micro_batch
    if micro != "auto" and not (isinstance(micro, int) and micro >= 1):
        found.append(f"train.micro_batch: auto or at least 1, got {micro!r}")
    if recipe.data.workers < 0:
        found.append(f"data.workers: at least 0, got {recipe.data.workers}")
    return found
