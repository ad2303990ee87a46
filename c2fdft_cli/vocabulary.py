"""The values that options and recipes can choose from, each list defined once.

`core` imports only torch, so it cannot import this module: its functions contain the values that
they accept and refuse all others, and the tests call them with every value of the lists here. The
tests also compare these lists with the keys of tables elsewhere (`PRECISIONS` of
`execution.device`, `PROTOCOLS` of `metrics.protocols`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

from c2fdft_cli.errors import UsageError
from c2fdft_cli.words import did_you_mean, one_of

Choice = TypeVar("Choice", bound=str)

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Compile: TypeAlias = Literal["auto", "on", "off"]
NormName: TypeAlias = Literal["with_bias", "bias_free"]
Schedule: TypeAlias = Literal["linear", "quad", "const", "jsd", "sigmoid"]
Spacing: TypeAlias = Literal["linspace", "leading", "trailing"]
Ssim: TypeAlias = Literal["paper", "as_released", "none"]
Recompute: TypeAlias = Literal["none", "call", "level"]
RecomputeSetting: TypeAlias = Literal["auto", Recompute]
WeightSet: TypeAlias = Literal["ema", "raw"]
TrainedStage: TypeAlias = Literal["coarse", "fine"]
WeightsStage: TypeAlias = Literal[TrainedStage, "released"]
GridOrigin: TypeAlias = Literal["recipe", "sweep", "training"]
Tensorboard: TypeAlias = Literal["auto", "true", "false"]
ProtocolName: TypeAlias = Literal[
    "derain", "derain-matlab", "deblur", "denoise", "rgb", "y", "levin"
]
Task: TypeAlias = Literal["derain", "deblur", "denoise", "restore"]
PackagedTask: TypeAlias = Literal["derain", "denoise", "deblur"]
DegradationName: TypeAlias = Literal["rain", "noise", "blur"]

DEVICES: tuple[Device, ...] = get_args(Device)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
COMPILE: tuple[Compile, ...] = get_args(Compile)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
TRAINED_STAGES: tuple[TrainedStage, ...] = get_args(TrainedStage)
PROTOCOL_NAMES: tuple[ProtocolName, ...] = get_args(ProtocolName)
PACKAGED_TASKS: tuple[PackagedTask, ...] = get_args(PackagedTask)
DEGRADATIONS: tuple[DegradationName, ...] = get_args(DegradationName)


@dataclass(frozen=True)
class TaskTraits:
    """What the program knows of a task, whose recipe has its name.

    Args:
        words: beginnings of words in a data set's name that indicate it.
        results: the word that names of restored files may have ("rain-001_derained.png").
        is_upright: whether its degradation looks different after a quarter turn, as rain does.
    """

    words: tuple[str, ...]
    results: str
    is_upright: bool = False


TASKS: dict[str, TaskTraits] = {
    "derain": TaskTraits(("rain",), "derained", is_upright=True),
    "deblur": TaskTraits(("blur", "gopro", "realblur", "reds"), "deblurred"),
    "denoise": TaskTraits(("nois", "sidd", "polyu"), "denoised"),
}
"""Every `Task` but `restore`, which stands for all others and has no recipe."""


def check_choice(option: str, value: str, choices: Sequence[Choice]) -> Choice:
    """Return the value of an option if it is one of the choices; UsageError otherwise."""
    for choice in choices:
        if choice == value:
            return choice
    hint = did_you_mean(str(value), choices)  # a Python program may pass a value of any type
    raise UsageError(f"{option} must be {one_of(choices)}, got {value!r}", hint=hint)
