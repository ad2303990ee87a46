"""C2F-DFT, a coarse-to-fine diffusion Transformer for image restoration, as a toolkit.

    import c2fdft_cli as c2fdft

    restorer = c2fdft.load("derain")
    image = restorer(image)

Importing it is cheap: torch is loaded when one of the names that need it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    from c2fdft_cli.api.jobs import evaluate, prepare, train
    from c2fdft_cli.api.module import RestorationModule
    from c2fdft_cli.api.restorer import Restorer, Uncertain, load

__all__ = [
    "C2fdftError",
    "CheckpointError",
    "DataError",
    "GpuError",
    "Interrupted",
    "PartialFailure",
    "RecipeError",
    "ResourceError",
    "RestorationModule",
    "Restorer",
    "Uncertain",
    "UsageError",
    "__version__",
    "evaluate",
    "load",
    "prepare",
    "train",
]

_MODULES = {
    "RestorationModule": "c2fdft_cli.api.module",
    "Restorer": "c2fdft_cli.api.restorer",
    "Uncertain": "c2fdft_cli.api.restorer",
    "evaluate": "c2fdft_cli.api.jobs",
    "load": "c2fdft_cli.api.restorer",
    "prepare": "c2fdft_cli.api.jobs",
    "train": "c2fdft_cli.api.jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
