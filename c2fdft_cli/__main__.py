"""The entry point of `c2fdft` and `python -m c2fdft_cli`."""

from __future__ import annotations

import os
import sys

from c2fdft_cli.signals import install


def main() -> None:
    """Run the command line."""
    install()  # before the imports, which take most of a short command's time
    open_closed_streams()
    from c2fdft_cli.cli.app import app

    app()


def open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed when the program starts.

    For a closed stream `sys.stdin`, `sys.stdout` or `sys.stderr` is None, so printing would fail.
    Also, the next file that is opened would get the stream's descriptor, and what a library prints
    would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Opened in this order each gets the lowest free descriptor, which is its own.
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


if __name__ == "__main__":
    main()
