"""Generate the table of the packaged weights' scores (`tests.kit.pages`).

Writes docs/models/scores.md from the catalogue; a test compares the file with the current one.
"""

from __future__ import annotations

from pathlib import Path

from c2fdft_cli.engine.weights.catalogue import PackagedWeights, PublishedScore, read_catalogue

FILE = Path(__file__).parents[2] / "docs" / "models" / "scores.md"
HEAD = """# Every packaged file

PSNR in dB and SSIM of the inputs and of the results, on 8-bit output. The card of each file
describes the sets and how many of their pairs were available; [metrics](../metrics.md) describes
the protocols.

Generated: `python -m tests.kit.pages`.

| weights | set, pairs, protocol | inputs | result | gain, dB |
|---|---|---|---|---|
"""
COSTS = """
| weights | sampling steps | MB | s / megapixel | trained for | licence |
|---|---|---|---|---|---|
"""


def reference() -> str:
    """Return the text of docs/models/scores.md."""
    entries = list(read_catalogue().values())
    scores = "\n".join(_score(entry, one) for entry in entries for one in entry.scores)
    return HEAD + scores + "\n" + COSTS + "\n".join(map(_cost, entries)) + "\n"


def _score(entry: PackagedWeights, one: PublishedScore) -> str:
    about = f"{one.set}; {one.images}, `{one.protocol}`"
    values = f"{_pair(one.input_psnr, one.input_ssim)} | {_pair(one.psnr, one.ssim)}"
    return f"| `{entry.name}` | {about} | {values} | {one.psnr - one.input_psnr:+.2f} |"


def _pair(psnr: float, ssim: float) -> str:
    return f"{psnr:.2f} / {f'{ssim:.3f}'.lstrip('0')}"


def _cost(entry: PackagedWeights) -> str:
    card = f"[`{entry.name}`]({Path(entry.card).name})"
    speed = f"{entry.seconds_per_megapixel:g} ({entry.timed_on})"
    return (
        f"| {card} | {len(entry.grid)} | {entry.bytes / 1e6:.1f} | {speed} | {entry.trained_for} | "
        f"{entry.licence} |"
    )
