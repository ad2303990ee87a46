"""The options of `convert`, and which of them can be combined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from c2fdft_cli.errors import UsageError
from c2fdft_cli.files.paths import same_files
from c2fdft_cli.files.writing import require_new
from c2fdft_cli.settings import OVERWRITE, check_settings, setting
from c2fdft_cli.vocabulary import WeightSet

CHECKPOINT, OFFICIAL, SAFETENSORS, ONNX = FORMATS = (
    "checkpoint",
    "official",
    "safetensors",
    "onnx",
)
SUFFIXES = {
    ".pt": CHECKPOINT,
    ".ckpt": CHECKPOINT,
    ".pth": OFFICIAL,
    ".safetensors": SAFETENSORS,
    ".onnx": ONNX,
}
HALVES = ("bf16", "fp16")


@dataclass(frozen=True)
class ConvertOptions:
    """The format to write, what to store in it, and whether to replace an existing file."""

    to: str | None = setting(
        None, "Format to write (default: by the suffix of OUT)", metavar="FORMAT", choices=FORMATS
    )
    raw: bool = setting(
        False, "Store the raw weights instead of the EMA weights (.safetensors and .onnx only)."
    )
    half: str | None = setting(
        None, "Store in half precision (.pt and .safetensors only).", choices=HALVES
    )
    ema_only: bool = setting(False, "Store only the EMA weights (.pt only).")
    overwrite: bool = setting(False, OVERWRITE)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def weight_set(self) -> WeightSet:
        """The set of weights to store in a format that holds only one."""
        return "raw" if self.raw else "ema"

    def check(self, source: Path, out: Path) -> str:
        """Return the format to write; UsageError if an option does not fit it.

        It is one too if `out` is the source, or exists and is not to be replaced.
        """
        form = self.to or _format_of(out)
        for given, option, fitting in (
            (self.half is not None, "--half", (CHECKPOINT, SAFETENSORS)),
            (self.ema_only, "--ema-only", (CHECKPOINT,)),
            (self.raw, "--raw", (SAFETENSORS, ONNX)),
        ):
            if given and form not in fitting:
                raise UsageError(
                    f"{option} cannot be combined with the format {form}",
                    hint=f"it can be combined with --to {' or '.join(fitting)}",
                )
        if source.suffix.lower() == ".onnx":
            raise UsageError(
                "an ONNX file cannot be converted back",
                where=source,
                hint="convert the checkpoint that it was made from",
            )
        # Most formats drop something that the source may hold: its optimiser, or all but one set.
        if same_files([out], [source]):
            hint = "name another file"
            raise UsageError("this output would replace its input", where=out, hint=hint)
        require_new(out, self.overwrite)
        return form


def _format_of(out: Path) -> str:
    found = SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise UsageError(
            "the suffix does not determine the format to write",
            where=out,
            hint=f"use {', '.join(SUFFIXES)}, or --to {'|'.join(FORMATS)}",
        )
    return found
