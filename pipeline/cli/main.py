"""The group of all commands. Each is imported when it runs, so that `pipeline --help` is fast."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = {
    "train-teacher": ("train", "Train a network on ground truth, to use as a teacher."),
    "cache-teacher": ("cache_teacher", "Stage one: run a teacher once and write a store."),
    "cache-images": ("cache_images", "Decode images once, for train-student --images."),
    "train-student": ("train", "Stage two: train a student from a store."),
    "evaluate-student": ("evaluate", "Evaluate a student against ground truth and its teacher."),
    "evaluate-teacher": ("evaluate", "Evaluate the depth in a store."),
    "compare": ("compare", "Compare students: is a difference more than chance?"),
    "report": ("report", "Write an HTML page about students."),
    "export-student": ("export", "Export a student as ONNX, checked against PyTorch."),
    "predict": ("predict", "Predict depth for a folder of images."),
    "study": ("study", "Train and compare many students."),
    "store": ("main", "Inspect, check, convert and share stores."),
}
"""Name -> module of this package, and description in the list of commands."""
STORE_COMMANDS = {
    "info": ("store", "Print a store's teacher, depth space, error bounds and size."),
    "verify": ("store", "Read a whole store and name all damage."),
    "align": ("store_align", "Align a relative-depth store to ground truth or a metric store."),
    "estimate": ("store_tools", "Estimate bytes and hours of a store."),
    "stats": ("store_tools", "Print the distribution of depth, errors and invalid pixels."),
    "subset": ("store_tools", "Write a store of some samples."),
    "recompress": ("store_tools", "Write a store with another compression level."),
    "merge": ("store_tools", "Join several stores into one."),
    "pack": ("store_tools", "Write a store as one file."),
    "unpack": ("store_tools", "Unpack a store into a directory."),
    "diff": ("store_tools", "Print what differs between two stores."),
}
"""Likewise for `pipeline store`."""


class LazyGroup(click.Group):
    """A group that imports a command when it runs."""

    def __init__(self, *args: Any, commands: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands_by_name = commands

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands in the order of use."""
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in self.commands_by_name:
            return None
        if sys.platform == "win32":
            raise click.ClickException("this program runs on Linux and macOS; on Windows run it in WSL 2")
        module = import_module(f".{self.commands_by_name[cmd_name][0]}", __package__)
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.commands_by_name.items()])


@click.group(cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tiekd-pipeline")
def main() -> None:
    """Distill a heavy depth network into a small one, in two offline stages (TIE-KD)."""


@click.group(cls=LazyGroup, commands=STORE_COMMANDS)
def store() -> None:
    """Inspect, check, convert and share stores."""


def commands() -> Iterator[click.Command]:
    """Yield every command; imports all of them."""
    for group in (main, store):
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            if command is not None and not isinstance(command, click.Group):
                yield command


if __name__ == "__main__":  # torchrun -m pipeline.cli.main
    main()
