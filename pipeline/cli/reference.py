"""Print the help of every command as one Markdown page: `python -m pipeline.cli.reference > docs/cli.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import echo
from .main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 100
"""Characters of a line of help."""


def page() -> str:
    """Return the page: one section for each command, with its `--help`."""
    head = "# Command line\n\nThe output of `pipeline COMMAND --help` for every command.\n"
    sections = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in helps(main, "pipeline")]
    return "\n".join([head, *sections])


def helps(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of a command, then of each command below it."""
    settings = {**command.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    context = click.Context(command, info_name=name.rpartition(" ")[2], parent=parent, **settings)
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            child = command.get_command(context, sub)
            assert child is not None, sub
            yield from helps(child, f"{name} {sub}", context)


if __name__ == "__main__":
    echo(page())
