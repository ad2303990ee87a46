"""A command that holds others."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """Has flags that are False, not None, when they are not given.

    For a None Typer loads the library that it validates values with, and the way to the help of
    a command leads through the flags of the groups above it.
    """

    def get_params(self, ctx: Any) -> Any:
        """The group's own options."""
        options = super().get_params(ctx)
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return options
