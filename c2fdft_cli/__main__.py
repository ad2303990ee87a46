"""`c2fdft` and `python -m c2fdft_cli`."""

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
    """Let the standard streams that whoever started the program has closed lead nowhere.

    Python has None in their places, which nothing could be printed to, and the next file that is
    opened would get the number of the stream: what a library prints would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # in this order each gets the lowest number that is free, its own
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


if __name__ == "__main__":
    main()
