"""C2F-DFT, a coarse-to-fine diffusion Transformer for image restoration, as a toolkit.

    import c2fdft_cli as c2fdft

    restorer = c2fdft.load("derain")
    image = restorer(image)

Importing it is cheap: torch is loaded when one of the names that need it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from c2fdft_cli.errors import (
    C2fdftError,
    CheckpointError,
    DataError,
    GpuError,
    Interrupted,
    PartialFailure,
    RecipeError,
    ResourceError,
    UsageError,
)
from c2fdft_cli.version import __version__

if TYPE_CHECKING:
    from c2fdft_cli.api.jobs import evaluate, prepare, sweep_steps, train
    from c2fdft_cli.api.module import RestorationModule
    from c2fdft_cli.api.restorer import Restorer, Uncertain, load
    from c2fdft_cli.engine.evaluate.job import EvalResult
    from c2fdft_cli.engine.prepare.job import PrepareResult
    from c2fdft_cli.engine.restore.result import ImageDone, RestoreResult, Skipped
    from c2fdft_cli.engine.sampling.scoring import Scored
    from c2fdft_cli.engine.sweep.report import SweepResult
    from c2fdft_cli.engine.sweep.table import SweepRow
    from c2fdft_cli.engine.train.events import (
        Begun,
        Notice,
        Saved,
        StepDone,
        TrainEvent,
        TrainResult,
        Validated,
    )

__all__ = [
    "Begun",
    "C2fdftError",
    "CheckpointError",
    "DataError",
    "EvalResult",
    "GpuError",
    "ImageDone",
    "Interrupted",
    "Notice",
    "PartialFailure",
    "PrepareResult",
    "RecipeError",
    "ResourceError",
    "RestorationModule",
    "RestoreResult",
    "Restorer",
    "Saved",
    "Scored",
    "Skipped",
    "StepDone",
    "SweepResult",
    "SweepRow",
    "TrainEvent",
    "TrainResult",
    "Uncertain",
    "UsageError",
    "Validated",
    "__version__",
    "evaluate",
    "load",
    "prepare",
    "sweep_steps",
    "train",
]

_MODULES = {
    "api.jobs": ("evaluate", "prepare", "sweep_steps", "train"),
    "api.module": ("RestorationModule",),
    "api.restorer": ("Restorer", "Uncertain", "load"),
    "engine.evaluate.job": ("EvalResult",),
    "engine.prepare.job": ("PrepareResult",),
    "engine.restore.result": ("ImageDone", "RestoreResult", "Skipped"),
    "engine.sampling.scoring": ("Scored",),
    "engine.sweep.report": ("SweepResult",),
    "engine.sweep.table": ("SweepRow",),
    "engine.train.events": (
        "Begun", "Notice", "Saved", "StepDone", "TrainEvent", "TrainResult", "Validated"
    ),
}  # fmt: skip


if not TYPE_CHECKING:  # to a type checker it would make every misspelled name valid

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
