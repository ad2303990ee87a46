"""`c2fdft doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json
from c2fdft_cli.errors import ResourceError

if TYPE_CHECKING:
    from c2fdft_cli.engine.tools.doctor import Finding


def doctor(json: Json = False) -> None:
    """Show what this machine supports: device, precision, optional packages, disk.

    The exit code is 5 if something is missing that the program cannot work without.
    """
    with console.loading():
        from c2fdft_cli.engine.tools.doctor import examine

    findings = examine()
    if json:
        console.emit([vars(finding) for finding in findings])
    else:
        rows = [(f.topic, _state(f), f.found, f.hint or "") for f in findings]
        console.table("", ("what", "state", "found", "what to do"), rows)
    broken = next((one for one in findings if one.required and not one.good), None)
    if broken is not None:
        raise ResourceError(f"{broken.topic} is required: {broken.found}", hint=broken.hint)


def _state(finding: Finding) -> str:
    """Return "ok" or "not ok"; a dash if something is missing that the program does not need."""
    if finding.good:
        return "ok"
    return "not ok" if finding.required else "-"
