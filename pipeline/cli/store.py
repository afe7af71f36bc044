"""`pipeline store info` and `pipeline store verify`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .cache_teacher import TEACHER_FLAGS, TEACHER_KINDS, options_of_flags
from .console import Console, echo, one_line, table
from .options import DEVICE, STORE, PlainCommand, option

if TYPE_CHECKING:
    from pathlib import Path

    from ..cache.compare_teacher import Agreement
    from ..store import Store
    from ..store.tools.verify import Damage
    from ..teachers.options import TeacherOptions


@click.command(cls=PlainCommand)
@click.argument("path", metavar="STORE", type=STORE)
def info(path: str | Path) -> None:
    """Print a store's teacher, depth space, error bounds and size, or the content of an image cache.

    \b
    Example: pipeline store info train.zarr
             pipeline store info images.zarr
    """
    from ..store.tools.info import describe
    from ..store.tools.open_any import open_either

    for name, value in describe(open_either(path)):
        echo(f"{one_line(name):<12} {one_line(value)}")


@click.command(cls=PlainCommand)
@click.argument("path", metavar="STORE", type=STORE)
@option("--against", "teacher_name", metavar="KIND:WHAT", help=f"Also compare with the live teacher: {TEACHER_KINDS}")
@option("--source", "source_name", metavar="KIND:ROOT", help="With --against: data set of the store's images.")
@option("--split", help="With --against: split to take samples from.")
@option("--samples", default=16, help="Samples to run the teacher on, evenly spaced over the split.")
@option("--batch-size", default=8, help="Images in a batch of the teacher.")
@TEACHER_FLAGS
@DEVICE
def verify(
    path: str | Path, teacher_name: str | None, source_name: str | None, split: str | None, **flags: Any
) -> None:
    """Read a whole store or image cache and name every damaged file.

    \b
    Example: pipeline store verify train.zarr
             pipeline store verify train.zarr --against python:teacher:load \\
               --source kitti:ROOT --split ROOT/splits/train.txt

    With --against, the live teacher is run twice on some samples. The store may differ from it by its error bound plus
    twice the difference between the two runs. Give the teacher the same flags as in cache-teacher.
    """
    if teacher_name is None and (lost := _given_besides("path", "debug")):
        raise click.UsageError(
            f"{', '.join(lost)}: means nothing without --against TEACHER; leave it out, or give that"
        )
    if teacher_name and not (source_name and split):
        raise click.UsageError("--against needs the images too: give --source and --split as to cache-teacher")
    from ..store import open_store
    from ..store.remote.addresses import hidden
    from ..store.tools.verify import verify_store

    if teacher_name:
        open_store(path)  # an image cache has no teacher: refuse it before reading all of it
    damage = verify_store(path, Console())
    for one in damage:
        echo(str(one), err=True)
    name = hidden(str(path))
    if damage:
        raise click.ClickException(f"{name}: {_verdict(damage)}")
    echo(f"{name}: sound")
    if teacher_name and source_name and split:
        _compare(path, teacher_name, source_name, split, flags)


def _verdict(damage: list[Damage]) -> str:
    """Say what to do about damage."""
    number = {kind: sum(one.kind == kind for one in damage) for kind in ("damaged", "unreadable", "kept")}
    texts = []
    if number["damaged"]:
        texts.append(f"{number['damaged']} files are damaged; fetch them again, or make the store again")
    if number["unreadable"]:
        texts.append(
            f"{number['unreadable']} files could not be read, which says nothing of their bytes: mend permissions, "
            "disk or mount, then verify again"
        )
    if number["kept"]:
        texts.append(
            f"{number['kept']} file{'s were' if number['kept'] > 1 else ' was'} kept wrongly on this machine, and what "
            "was learned or measured from this address before may be wrong: run that again"
        )
    return "; ".join(texts)


def _given_besides(*names: str) -> list[str]:
    """Return the options on the command line other than these."""
    context = click.get_current_context()
    return [
        one.opts[0]
        for one in context.command.params
        if one.name and one.name not in names and context.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    ]


def _compare(path: str | Path, teacher_name: str, source_name: str, split: str, flags: dict[str, Any]) -> None:
    from ..cache.compare_teacher import compare_with_teacher
    from ..common.device import choose_device
    from ..sources.registry import open_source
    from ..store import open_store
    from ..teachers.registry import open_teacher

    source = open_source(source_name)
    source.samples(split)  # a missing split fails before a heavy teacher is loaded
    store = open_store(path)
    options = _mixing_as(store, options_of_flags(flags))
    teacher = open_teacher(teacher_name, device=choose_device(flags.pop("device")), options=options)
    found = compare_with_teacher(
        store,
        source,
        split,
        teacher,
        count=flags["samples"],
        batch_size=flags["batch_size"],
        progress=Console(),
    )
    heads = ["against the live teacher", "median", "largest", "allowed median", "allowed largest"]
    rows = []
    for one in found:
        rows.append([f"store, {one.name}", *_shown(one, *one.cache, *one.limit)])
        rows.append([f"teacher again, {one.name}", *_shown(one, *one.noise), "", ""])
    echo(table(heads, rows))
    for one in found:
        if not one.holds:
            largest, bound, noise = _shown(one, one.cache.largest, one.bound, one.noise.largest)
            raise click.ClickException(
                f"{store.name}: its {one.name} is up to {largest} from the live teacher (sample {one.worst}); expected "
                f"its bound of {bound} plus the teacher's own noise of {noise}: make it "
                "again with `pipeline cache-teacher`"
            )


def _mixing_as(store: Store, options: TeacherOptions) -> TeacherOptions:
    """Add the bins and sigma with which the store's teacher averaged predictions, if it did."""
    if store.spec.depth_space != "metric_m":
        return options
    stated = store.spec.teacher.get("preprocessing")
    sigma_m = stated.get("sigma_m") if isinstance(stated, dict) else None
    return replace(
        options,
        map_edges_m=store.spec.bin_edges,
        map_sigma_m=sigma_m if isinstance(sigma_m, float) else None,  # a stranger's store may hold anything
    )


def _shown(one: Agreement, *values: float) -> list[str]:
    return [f"{value:.4%}" if one.name == "depth" else f"{value:.2g} nats" for value in values]
