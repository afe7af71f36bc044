"""`pipeline store info` and `pipeline store verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .console import Console
from .plain import PATH, PlainCommand

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=PlainCommand)
@click.argument("path", metavar="STORE", type=PATH)
def info(path: Path) -> None:
    """Say who the teacher is, what the numbers mean, and what a sample costs.

    \b
    Example: pipeline store info train.zarr
    """
    from ..store import open_store
    from ..store.info import describe

    for name, value in describe(open_store(path)):
        click.echo(f"{name:<12} {value}")


@click.command(cls=PlainCommand)
@click.argument("path", metavar="STORE", type=PATH)
def verify(path: Path) -> None:
    """Read the whole store, and name every file that is not as it was written.

    \b
    Example: pipeline store verify train.zarr
    """
    from ..store.verify import verify_store

    damage = verify_store(path, Console())
    for one in damage:
        click.echo(str(one), err=True)
    if damage:
        raise click.ClickException(f"{path}: {len(damage)} files are damaged; fetch them again, or make the store anew")
    click.echo(f"{path}: sound")
