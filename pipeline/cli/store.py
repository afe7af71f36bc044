"""`pipeline store info` and `pipeline store verify`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .console import Console, echo, one_line, table
from .options import DEVICE, STORE, PipelineCommand, option
from .teacher_flags import TEACHER_FLAGS, TEACHER_KINDS, options_of_flags

if TYPE_CHECKING:
    from pathlib import Path

    from ..store import Store
    from ..store.tools.verify import Damage
    from ..teachers.options import TeacherOptions


@click.command(cls=PipelineCommand)
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


@click.command(cls=PipelineCommand)
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

    With --against, the live teacher runs twice on some samples. The store may differ from it by its error bound plus
    twice the difference between the two runs. Give the teacher the same flags as for cache-teacher.
    """
    if teacher_name is None and (unused := _given_options_except("path", "debug")):
        raise click.UsageError(f"{', '.join(unused)}: used only with --against; add --against TEACHER, or leave it out")
    if teacher_name and not (source_name and split):
        raise click.UsageError("--against needs the images too: add --source and --split, as for cache-teacher")
    from ..store import open_store
    from ..store.remote.addresses import hidden
    from ..store.tools.verify import verify_store

    if teacher_name:
        open_store(path)  # an image cache has no teacher: refuse it before reading all of it
    damage = verify_store(path, Console())
    for item in damage:
        echo(str(item), err=True)
    name = hidden(str(path))
    if damage:
        raise click.ClickException(f"{name}: {_remedies(damage)}")
    echo(f"{name}: OK")
    if teacher_name and source_name and split:
        _compare(path, teacher_name, source_name, split, flags)


def _remedies(damage: list[Damage]) -> str:
    """Describe what to do about damage."""
    count = Counter(item.kind for item in damage)
    texts = []
    if count["damaged"]:
        texts.append(f"{count['damaged']} files are damaged: fetch them again, or make the store again")
    if count["unreadable"]:
        texts.append(
            f"{count['unreadable']} files could not be read and were not checked: fix permissions, disk or mount, then "
            "verify again"
        )
    if count["kept"]:
        texts.append(
            f"{count['kept']} files in this machine's store cache were wrong and are removed: repeat trainings and "
            "evaluations that read this URL"
        )
    return "; ".join(texts)


def _given_options_except(*names: str) -> list[str]:
    """Return the options on the command line other than these."""
    context = click.get_current_context()
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name}
    return [
        option
        for name, option in options.items()
        if name not in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
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
    options = _with_averaging_bins(store, options_of_flags(flags))
    teacher = open_teacher(teacher_name, device=choose_device(flags.pop("device")), options=options)
    agreements = compare_with_teacher(
        store,
        source,
        split,
        teacher,
        count=flags["samples"],
        batch_size=flags["batch_size"],
        progress=Console(),
    )
    head = ["against the live teacher", "median", "largest", "allowed median", "allowed largest"]
    rows = []
    for agreement in agreements:
        name = agreement.name
        rows.append([f"store, {name}", *_formatted(name, *agreement.cache, *agreement.limit)])
        rows.append([f"teacher again, {name}", *_formatted(name, *agreement.noise), "", ""])
    echo(table(head, rows))
    for agreement in agreements:
        if not agreement.holds:
            name, worst = agreement.name, agreement.worst
            largest, bound, noise = _formatted(name, agreement.cache.largest, agreement.bound, agreement.noise.largest)
            raise click.ClickException(
                f"{store.name}: its {name} differs by up to {largest} from the live teacher (sample {worst}), expected "
                f"at most its bound of {bound} plus the teacher's own noise of {noise}: check that this is the same "
                "teacher with the same flags, or make the store again with `pipeline cache-teacher`"
            )


def _with_averaging_bins(store: Store, options: TeacherOptions) -> TeacherOptions:
    """Add the bins and sigma with which the store's teacher averaged predictions, if it did."""
    if store.spec.depth_space != "metric_m":
        return options
    preprocessing = store.spec.teacher.get("preprocessing")
    sigma_m = preprocessing.get("sigma_m") if isinstance(preprocessing, dict) else None
    return replace(
        options,
        map_edges_m=store.spec.bin_edges,
        map_sigma_m=sigma_m if isinstance(sigma_m, float) else None,  # a shared store may hold anything
    )


def _formatted(name: str, *values: float) -> list[str]:
    if name == "depth":
        return [f"{value:.4%}" for value in values]
    return [f"{value:.2g} nats" if name == "maps" else f"{value:.4f}" for value in values]
