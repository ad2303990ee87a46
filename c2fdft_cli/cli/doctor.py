"""`c2fdft doctor`."""

from __future__ import annotations

from c2fdft_cli.cli import console
from c2fdft_cli.cli.options import Json


def doctor(json: Json = False) -> None:
    """Show what this machine offers: device, precision, optional packages, disk."""
    from c2fdft_cli.engine.tools.doctor import examine

    findings = examine()
    if json:
        console.emit([vars(finding) for finding in findings])
        return
    rows = [(f.topic, "ok" if f.good else "missing", f.found, f.hint or "") for f in findings]
    console.table("", ("what", "state", "found", "what to do"), rows)
