"""`c2fdft` and `python -m c2fdft_cli`."""

from __future__ import annotations

from c2fdft_cli.signals import install


def main() -> None:
    """Run the command line."""
    install()  # before the imports, which take most of a short command's time
    from c2fdft_cli.cli.app import app

    app()


if __name__ == "__main__":
    main()
