"""Messages of the library name options in backticks, as in Python; the command line shows the flags instead."""

from __future__ import annotations

import re
from functools import cache

import click

OPTION = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")
"""An option in a message of the library, with or without a value: `batch_size` or `batch_size=0`."""


def with_flags(message: str) -> str:
    """Replace each option in a message by its flag: `batch_size=0` becomes --batch-size 0."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in _flags():
            return match[0]
        on, off = _flags()[name]
        if value in {None, "True"}:
            return on
        if value == "False" and off:
            return off
        unquoted = value.strip("'")
        return f"{on} {unquoted}"

    return OPTION.sub(flag, message)


@cache
def _flags() -> dict[str, tuple[str, str]]:
    """Return for the Python name of every option its flag, and the flag that turns it off or an empty string."""
    from .main import commands

    flags: dict[str, tuple[str, str]] = {}
    for command in commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name is not None:
                on, off = parameter.opts[0], next(iter(parameter.secondary_opts), "")
                name = on.lstrip("-").replace("-", "_")
                flags |= dict.fromkeys((parameter.name, name, f"{name}_px"), (on, off))
    return flags
