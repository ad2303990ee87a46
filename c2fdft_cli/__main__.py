"""`c2fdft` and `python -m c2fdft_cli`."""

from __future__ import annotations

from c2fdft_cli.cli.app import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
