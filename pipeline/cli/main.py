"""The group of all commands, each loaded when it is asked for, so that `pipeline --help` is quick."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = {
    "train-teacher": ("train", "Train a network on ground truth, to be a teacher."),
    "cache-teacher": ("cache_teacher", "Stage one: run a teacher once, into a store."),
    "cache-images": ("cache_images", "Keep a split's images decoded, for train-student --images."),
    "train-student": ("train", "Stage two: train a student from a store."),
    "evaluate-student": ("evaluate", "Measure a student against ground truth and its teacher."),
    "evaluate-teacher": ("evaluate", "Measure the depth that a store holds."),
    "compare": ("compare", "Say whether one student is better than another, or it is chance."),
    "report": ("report", "Write a page that shows what students learned."),
    "export-student": ("export", "Write a student as ONNX, checked against PyTorch."),
    "predict": ("predict", "Run a student, or its ONNX file, over a folder of images."),
    "study": ("study", "Train and compare many students that differ in a few flags."),
    "store": ("main", "Look at a store, check it, hand it on."),
}
"""Name -> module of this package, and what the list of commands says of it."""
STORE_COMMANDS = {
    "info": ("store", "Say who the teacher is and what the numbers mean."),
    "verify": ("store", "Read the whole store, and name all damage."),
    "align": ("store_align", "Bring a relative teacher's store to metres, by ground truth."),
    "estimate": ("store_tools", "Say how many bytes and hours a store will take."),
    "stats": ("store_tools", "Say how depth, errors and invalid pixels are spread."),
    "subset": ("store_tools", "Write a store of some samples, without encoding anew."),
    "merge": ("store_tools", "Make one store of several that were made apart."),
    "pack": ("store_tools", "Put a store into one file."),
    "unpack": ("store_tools", "Make a packed store a directory again."),
    "diff": ("store_tools", "Say what differs between two stores."),
}
"""The same for `pipeline store`."""


class LazyGroup(click.Group):
    """A group that knows its commands' names, and imports one when it is run."""

    def __init__(self, *args: Any, known: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known = known

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Commands in the order in which they are used."""
        return list(self.known)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in self.known:
            return None
        if sys.platform == "win32":
            raise click.ClickException("this program runs on Linux and macOS; on Windows run it in WSL 2")
        module = import_module(f".{self.known[cmd_name][0]}", __package__)
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.known.items()])


@click.group(cls=LazyGroup, known=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tiekd-pipeline")
def main() -> None:
    """Run a heavy depth network once, and train small ones from what it wrote (TIE-KD)."""


@click.group(cls=LazyGroup, known=STORE_COMMANDS)
def store() -> None:
    """Look at a store, check it, hand it on."""


def commands() -> Iterator[click.Command]:
    """Every command, imported."""
    for group in (main, store):
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            if command is not None and not isinstance(command, click.Group):
                yield command


if __name__ == "__main__":  # torchrun -m pipeline.cli.main
    main()
