"""The option --data of one of several data sets: SOURCE,SPLIT,STORE[,WEIGHT]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .flags import with_flags
from .options import STORE

if TYPE_CHECKING:
    from pathlib import Path

COMMA = re.compile(r",(?![^{}]*\})")
"""A comma outside of braces: `wds:train-{a,b}.tar` is one field."""
EXAMPLE = "kitti:ROOT,train,kitti.zarr or kitti:ROOT,train,kitti.zarr,2"


class DataFields(NamedTuple):
    """The fields of a data set, as written."""

    source_name: str
    split: str
    store: str | Path
    weight: float | None = None


class DataSetType(click.ParamType[DataFields]):
    """Source, split, store and optionally a weight, separated by commas outside of braces."""

    name = "SOURCE,SPLIT,STORE[,WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DataFields:
        """Parse `kitti:ROOT,train,kitti.zarr,2`."""
        if isinstance(value, DataFields):
            return value
        fields = COMMA.split(str(value))
        if len(fields) not in {3, 4} or "" in fields:
            self.fail(f"{value!r}: expected a source, a split, a store and perhaps a weight: {EXAMPLE}", param, ctx)
        source_name, split, store = fields[:3]
        try:
            weight = float(fields[3]) if len(fields) > 3 else None
        except ValueError:
            self.fail(f"{value!r}: the weight is {fields[3]!r}, expected a number, as in {EXAMPLE}", param, ctx)
        return DataFields(source_name, split, STORE.convert(store, param, ctx), weight)


DATA_SET = DataSetType()


def check_usage(
    data: tuple[DataFields, ...],
    store_path: str | Path | None,
    flips_store: str | Path | None,
    *,
    source_name: str | None,
    split: str | None,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    images: Path | None,
    validation_split: str | None,
    **_: Any,
) -> None:
    """Raise UsageError unless one data set is given by --source, --split and --store, or several by --data."""
    from ..errors import PipelineError
    from ..train.compatibility import check_one_or_several

    one = {"source": source_name, "split": split, "store": store_path}
    given = {"truth": truth, "invalid": invalid, "flips_store": flips_store, "images": images}
    try:
        check_one_or_several(data, one, {**given, "validation_split": validation_split})
    except PipelineError as error:
        raise click.UsageError(with_flags(str(error))) from error
    if not data and store_path is None:
        raise click.UsageError("Missing option '--store'.")
