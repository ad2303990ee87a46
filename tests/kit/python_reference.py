"""Generate the Python reference from the docstrings (`tests.kit.pages`).

Writes docs/reference/python.md; a test compares the file with the current docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import c2fdft_cli as c2fdft

FILE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"
HEAD = """# Python

```python
import c2fdft_cli as c2fdft

restorer = c2fdft.load("derain")
image = restorer(image)
```

The import is light: torch is loaded with the first name that is used. Nothing is printed. Errors
are the [program's exceptions](exit-codes.md), with the sentence in `str(error)` and what to try in
`error.hint`; they name options as the command line does. There are
[examples](../howto/examples.md) that run as they are.

`Interrupted` is one of them: a loop that catches `C2fdftError` must let it through (`except
c2fdft.Interrupted: raise`), or it swallows Ctrl-C.

All names on this page can be imported from `c2fdft_cli`, also those of results and events.

Generated: `python -m tests.kit.pages`.
"""
NAMES = (
    "load", "Restorer", "Uncertain", "RestorationModule", "evaluate", "prepare", "train",
    "sweep_steps",
)  # fmt: skip
RESULTS = (
    "RestoreResult", "ImageDone", "Skipped", "EvalResult", "Scored", "PrepareResult", "TrainResult",
    "SweepResult", "SweepRow",
)  # fmt: skip
EVENTS = ("Begun", "StepDone", "Validated", "Saved", "Notice")
SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:")


def reference() -> str:
    """Return the text of docs/reference/python.md."""
    parts = [HEAD]
    for name in NAMES:
        one = getattr(c2fdft, name)
        parts.append(_entry(2, name, one))
        parts += [_entry(3, f"{name}.{method}", function) for method, function in _methods(one)]
    parts.append("## Results\n")
    parts += [_entry(3, name, getattr(c2fdft, name)) for name in RESULTS]
    parts.append("## TrainEvent\n")
    parts.append("What `train` calls `on_event` with: an object of one of these classes.\n")
    parts += [_entry(3, name, getattr(c2fdft, name)) for name in EVENTS]
    return "\n".join(parts)


def _methods(one: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public methods with a docstring, `__call__` and `forward` among them."""
    for name, function in vars(one).items() if inspect.isclass(one) else ():
        public = name in ("__call__", "forward") or not name.startswith("_")
        if inspect.isfunction(function) and public and function.__doc__:
            yield name, function


def _entry(level: int, name: str, one: Any) -> str:
    heading = f"{'#' * level} {name.replace('.__call__', '(...)')}"
    signature = "" if inspect.isclass(one) else f"```python\n{_signature(name, one)}\n```\n\n"
    return f"{heading}\n\n{signature}{markdown(inspect.getdoc(one) or '')}\n"


def _signature(name: str, function: Any) -> str:
    """Return the signature with one parameter per line and the annotations as written."""
    signature = inspect.signature(function)
    lines, starred = [], False
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        default = "" if one.default is one.empty else f" = {one.default!r}"
        lines.append(f"    {one.name}: {one.annotation}{default},")
    called = name.removesuffix(".__call__").replace("Restorer", "restorer")
    brackets = [f"{called}(", *lines, f") -> {signature.return_annotation}"]
    return "\n".join(brackets) if lines else f"{called}() -> {signature.return_annotation}"


def markdown(text: str) -> str:
    """Convert a docstring to Markdown, its sections to lists."""
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.strip() in SECTIONS:
            inside = True
            out += [f"**{line.strip()[:-1]}**", ""]
        elif inside and (found := re.match(r"^ {4}([\w, ]+): (.*)$", line)):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            out.append(f"- {names}: {found[2]}")
        elif inside and re.match(r"^ {4}\S", line):
            out.append(line.strip())
        elif line.startswith(" " * 4):
            out.append(f"  {line.strip()}")
        elif not line:
            out.append("")
        else:
            inside = False
            found = re.match(r"^(\w+(?:, \w+)*): (.*)$", line)
            names = "" if found is None else ", ".join(f"`{one}`" for one in found[1].split(", "))
            out.append(f"- {names}: {found[2]}" if found else line)
    return "\n".join(out)
